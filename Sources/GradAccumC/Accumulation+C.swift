import CGradAccum
import GradAccum

@_cdecl("ga_accumulator_create") @implementation
public func ga_accumulator_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ optimizerHandle: OpaquePointer!,
    _ given: UnsafePointer<ga_accumulator_options>!
) -> ga_status {
    guarded { () throws(GAError) in
        let out = try required(out, "out")
        let defaults = Accumulator.Options()
        let chosen = try options(
            given,
            or: ga_accumulator_options(
                struct_size: 0, loss_reduction: GA_REDUCTION_SUM, accumulation_steps: 1, max_grad_norm: 0,
                max_grad_value: 0, agc_clipping: 0, agc_eps: defaults.agcEps, isolated: 0,
                normalization: GA_NORMALIZATION_WEIGHT, on_non_finite: GA_ON_NON_FINITE_SKIP,
                accumulate_into: GA_ACCUMULATE_INTO_GRADIENTS,
                max_consecutive_skips: 0, max_loss_z_score: 0, max_norm_z_score: 0,
                outlier_warmup: Int64(defaults.outlierWarmup), sum_format: GA_SUM_FLOAT32, count_underflow: 0),
            firstVersion: 24)
        let accumulator = try Accumulator(
            try optimizer(optimizerHandle),
            Accumulator.Options(
                lossReduction: try constant(chosen.loss_reduction, "loss_reduction"),
                accumulationSteps: Int(chosen.accumulation_steps),
                maxGradNorm: unlessZero(chosen.max_grad_norm), maxGradValue: unlessZero(chosen.max_grad_value),
                agcClipping: unlessZero(chosen.agc_clipping), agcEps: chosen.agc_eps,
                isIsolated: try flag(chosen.isolated, "isolated"),
                normalization: try constant(chosen.normalization, "normalization"),
                onNonFinite: try constant(chosen.on_non_finite, "on_non_finite"),
                maxConsecutiveSkips: chosen.max_consecutive_skips == 0 ? nil : Int(chosen.max_consecutive_skips),
                maxLossZScore: unlessZero(chosen.max_loss_z_score), maxNormZScore: unlessZero(chosen.max_norm_z_score),
                outlierWarmup: Int(chosen.outlier_warmup),
                accumulateInto: try constant(chosen.accumulate_into, "accumulate_into"),
                sumFormat: try constant(chosen.sum_format, "sum_format"),
                countsUnderflow: try flag(chosen.count_underflow, "count_underflow")))
        out.pointee = try HandleTable.shared.insert(accumulator, .accumulator)
    }
}

@_cdecl("ga_accumulator_free") @implementation
public func ga_accumulator_free(_ accumulator: OpaquePointer!) {
    freeHandle(accumulator, .accumulator) { object in
        guard let count = (object as? Accumulator)?.unsettledMicroBatches, count > 0 else { return nil }
        return
            "accumulator_free: \(count) micro-batches were in the window and are lost: settle them before, with step, "
            + "data_end or zero"
    }
}

@_cdecl("ga_accumulator_set_accumulation_steps") @implementation
public func ga_accumulator_set_accumulation_steps(_ handle: OpaquePointer!, _ accumulation_steps: Int64) -> ga_status {
    guarded { () throws(GAError) in try accumulator(handle).setAccumulationSteps(Int(accumulation_steps)) }
}

@_cdecl("ga_accumulator_accumulation_steps") @implementation
public func ga_accumulator_accumulation_steps(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<Int64>!)
    -> ga_status
{
    guarded { () throws(GAError) in
        let accumulator = try accumulator(handle)
        try required(out, "out").pointee = Int64(accumulator.accumulationSteps)
    }
}

@_cdecl("ga_accumulator_set_ramp") @implementation
public func ga_accumulator_set_ramp(
    _ handle: OpaquePointer!, _ clock: Int32, _ interpolated: Int32, _ times: UnsafePointer<Double>!,
    _ accumulation_steps: UnsafePointer<Int64>!, _ count: Int64
) -> ga_status {
    guarded { () throws(GAError) in
        let accumulator = try accumulator(handle)
        let times = try array(times, count, "times")
        let steps = try array(accumulation_steps, count, "accumulation_steps")
        try accumulator.setRamp(
            AccumulationRamp(
                times: Array(times), accumulationSteps: steps.map { Int($0) }, clock: try constant(clock, "clock"),
                isInterpolated: try flag(interpolated, "interpolated")))
    }
}

@_cdecl("ga_accumulate") @implementation
public func ga_accumulate(_ handle: OpaquePointer!, _ loss: OpaquePointer!, _ weight: Double) -> ga_status {
    guarded { () throws(GAError) in
        try accumulator(handle).accumulate(tensor(loss, "loss"), weight: unlessLater(weight))
    }
}

@_cdecl("ga_accumulate_gradients") @implementation
public func ga_accumulate_gradients(
    _ handle: OpaquePointer!, _ gradients: UnsafePointer<UnsafeRawPointer?>!, _ count: Int64, _ dtype: Int32,
    _ loss: Double, _ weight: Double
) -> ga_status {
    guarded { () throws(GAError) in
        let accumulator = try accumulator(handle)
        let type: DType = try constant(dtype, "dtype")
        try accumulator.accumulate(
            gradients: Array(try array(gradients, count, "gradients")), type, loss: loss, weight: unlessLater(weight))
    }
}

@_cdecl("ga_accumulate_gradient") @implementation
public func ga_accumulate_gradient(
    _ handle: OpaquePointer!, _ index: Int64, _ gradient: UnsafeRawPointer!, _ dtype: Int32, _ scale: Double
) -> ga_status {
    guarded { () throws(GAError) in
        let accumulator = try accumulator(handle)
        let type: DType = try constant(dtype, "dtype")
        try accumulator.accumulate(
            gradient: required(gradient, "gradient"), ofParameter: Int(index), type, scale: scale)
    }
}

@_cdecl("ga_accumulate_scaled_gradients") @implementation
public func ga_accumulate_scaled_gradients(
    _ handle: OpaquePointer!, _ gradients: UnsafePointer<UnsafeRawPointer?>!, _ count: Int64, _ dtype: Int32,
    _ gradient_scale: Double, _ loss: Double, _ weight: Double
) -> ga_status {
    guarded { () throws(GAError) in
        let accumulator = try accumulator(handle)
        let type: DType = try constant(dtype, "dtype")
        try accumulator.accumulate(
            gradients: Array(try array(gradients, count, "gradients")), type, gradientScale: gradient_scale, loss: loss,
            weight: unlessLater(weight))
    }
}

@_cdecl("ga_micro_batch_begin") @implementation
public func ga_micro_batch_begin(_ handle: OpaquePointer!) -> ga_status {
    guarded { () throws(GAError) in try accumulator(handle).beginMicroBatch() }
}

@_cdecl("ga_micro_batch_commit") @implementation
public func ga_micro_batch_commit(_ handle: OpaquePointer!) -> ga_status {
    guarded { () throws(GAError) in try accumulator(handle).commitMicroBatch() }
}

@_cdecl("ga_micro_batch_abort") @implementation
public func ga_micro_batch_abort(_ handle: OpaquePointer!) -> ga_status {
    guarded { () throws(GAError) in try accumulator(handle).abortMicroBatch() }
}

@_cdecl("ga_micro_batch_set_weight") @implementation
public func ga_micro_batch_set_weight(_ handle: OpaquePointer!, _ micro_batch: Int64, _ weight: Double) -> ga_status {
    guarded { () throws(GAError) in try accumulator(handle).setWeight(weight, ofMicroBatch: Int(micro_batch)) }
}

@_cdecl("ga_step_due") @implementation
public func ga_step_due(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<Int32>!) -> ga_status {
    guarded { () throws(GAError) in
        let accumulator = try accumulator(handle)
        try required(out, "out").pointee = accumulator.isStepDue ? 1 : 0
    }
}

@_cdecl("ga_step") @implementation
public func ga_step(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<ga_report>!) -> ga_status {
    reporting(out) { () throws(GAError) in
        let accumulator = try accumulator(handle)
        return { () throws(GAError) in try accumulator.step() }
    }
}

@_cdecl("ga_window_report") @implementation
public func ga_window_report(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<ga_report>!) -> ga_status {
    guarded { () throws(GAError) in
        let accumulator = try accumulator(handle)
        try store(ga_report(accumulator.windowReport()), to: required(out, "report"), firstVersion: firstReport)
    }
}

@_cdecl("ga_accumulator_set_skip_handler") @implementation
public func ga_accumulator_set_skip_handler(
    _ handle: OpaquePointer!, _ decide: ga_skip_fn!, _ user: UnsafeMutableRawPointer!
) -> ga_status {
    guarded { () throws(GAError) in
        let accumulator = try accumulator(handle)
        guard let decide else {
            accumulator.skipHandler = nil
            return
        }
        accumulator.skipHandler = { (report) throws(GAError) in
            var report = ga_report(report)
            return try constant(decide(&report, user), "what the skip handler returned")
        }
    }
}

@_cdecl("ga_accumulator_set_loss_scaler") @implementation
public func ga_accumulator_set_loss_scaler(_ handle: OpaquePointer!, _ scaler: OpaquePointer!) -> ga_status {
    guarded { () throws(GAError) in
        try accumulator(handle).setLossScaler(scaler == nil ? nil : try lossScaler(scaler))
    }
}

@_cdecl("ga_accumulator_set_retry_handler") @implementation
public func ga_accumulator_set_retry_handler(
    _ handle: OpaquePointer!, _ retry: ga_retry_fn!, _ user: UnsafeMutableRawPointer!
) -> ga_status {
    guarded { () throws(GAError) in
        let accumulator = try accumulator(handle)
        guard let retry else {
            accumulator.retryHandler = nil
            return
        }
        accumulator.retryHandler = { (report) throws(GAError) in
            var report = ga_report(report)
            return try flag(retry(&report, user), "what the retry handler returned")
        }
    }
}

@_cdecl("ga_unscale") @implementation
public func ga_unscale(_ handle: OpaquePointer!, _ norm: UnsafeMutablePointer<Double>!) -> ga_status {
    guarded { () throws(GAError) in
        let accumulator = try accumulator(handle)
        let norm = try required(norm, "norm")
        norm.pointee = try accumulator.unscale()
    }
}

@_cdecl("ga_data_begin") @implementation
public func ga_data_begin(_ handle: OpaquePointer!) -> ga_status {
    guarded { () throws(GAError) in try accumulator(handle).beginData() }
}

@_cdecl("ga_data_end") @implementation
public func ga_data_end(_ handle: OpaquePointer!, _ tail: Int32, _ out: UnsafeMutablePointer<ga_report>!) -> ga_status {
    reporting(out) { () throws(GAError) in
        let accumulator = try accumulator(handle)
        let tail: Accumulator.Tail = try constant(tail, "tail")
        return { () throws(GAError) in try accumulator.endData(tail) }
    }
}

@_cdecl("ga_gradient_norms") @implementation
public func ga_gradient_norms(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<Double>!, _ count: Int64)
    -> ga_status
{
    guarded { () throws(GAError) in
        let accumulator = try accumulator(handle)
        let out = try required(out, "out")
        let norms = try accumulator.gradientNorms()
        try requireRoom(count, norms.count)
        out.update(from: norms, count: norms.count)
    }
}

@_cdecl("ga_stagnation") @implementation
public func ga_stagnation(
    _ handle: OpaquePointer!, _ additions: UnsafeMutablePointer<Int64>!, _ unchanged: UnsafeMutablePointer<Int64>!,
    _ count: Int64
) -> ga_status {
    guarded { () throws(GAError) in
        let accumulator = try accumulator(handle)
        let additions = try required(additions, "additions")
        let unchanged = try required(unchanged, "unchanged")
        let found = try accumulator.stagnation()
        try requireRoom(count, found.count)
        for (index, stagnation) in found.enumerated() {
            additions[index] = Int64(stagnation.additions)
            unchanged[index] = Int64(stagnation.unchanged)
        }
    }
}

private func requireRoom(_ count: Int64, _ parameters: Int) throws(GAError) {
    guard count == parameters else {
        throw GAError(
            .invalidArgument, "count is \(count), but the optimizer has \(parameters) parameters: make room for those")
    }
}

@_cdecl("ga_zero") @implementation
public func ga_zero(_ handle: OpaquePointer!) -> ga_status {
    guarded { () throws(GAError) in try accumulator(handle).zero() }
}

@_cdecl("ga_accumulated_gradient") @implementation
public func ga_accumulated_gradient(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ handle: OpaquePointer!, _ index: Int64
) -> ga_status {
    making(out) { () throws(GAError) in try accumulator(handle).accumulatedGradient(Int(index)) }
}

/// Runs the call that `prepare` has checked the arguments of, and writes its report unless `out` is NULL.
private func reporting(
    _ out: UnsafeMutablePointer<ga_report>?, _ prepare: () throws(GAError) -> () throws(GAError) -> WindowReport
) -> ga_status {
    guarded { () throws(GAError) in
        let call = try prepare()
        if let out {
            _ = try structSize(
                UnsafeRawPointer(out), of: ga_report.self, firstVersion: firstReport, "report", zeroTail: false)
        }
        let report = try call()
        if let out { try store(ga_report(report), to: out, firstVersion: firstReport) }
    }
}

/// The size of the first version of a report.
private let firstReport = 64

extension ga_report {
    fileprivate init(_ report: WindowReport) {
        self.init(
            struct_size: UInt32(MemoryLayout<ga_report>.size), outcome: report.outcome.rawValue, loss: report.loss,
            weight: report.weight, micro_batches: Int64(report.microBatches), gradient_norm: report.gradientNorm,
            clip_factor: report.clipFactor, learning_rate: report.learningRate, update_count: Int64(report.updateCount),
            aborted_micro_batches: Int64(report.abortedMicroBatches),
            accumulation_steps: Int64(report.accumulationSteps), loss_scale: report.lossScale,
            loss_z_score: report.lossZScore, gradient_norm_z_score: report.gradientNormZScore,
            consecutive_skips: Int64(report.consecutiveSkips),
            non_finite_parameter: Int64(report.firstNonFinite?.parameter ?? -1),
            non_finite_micro_batch: Int64(report.firstNonFinite?.microBatch ?? -1),
            accumulator_bytes: Int64(report.cost.accumulatorBytes), tensor_bytes: Int64(report.cost.tensorBytes),
            forward_backward_seconds: report.cost.forwardBackwardSeconds, step_seconds: report.cost.stepSeconds,
            retries: Int64(report.retries), underflow: report.underflow)
    }
}

/// A weight that is not to come later.
private func unlessLater(_ weight: Double) -> Double? { weight == GA_WEIGHT_LATER ? nil : weight }

/// An option that 0 turns off.
private func unlessZero(_ value: Double) -> Double? { value == 0 ? nil : value }

private func accumulator(_ handle: OpaquePointer?) throws(GAError) -> Accumulator {
    try borrow(handle, .accumulator, "accumulator")
}
