import CGradAccum
import GradAccum

@_cdecl("ga_accumulator_create") @implementation
public func ga_accumulator_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ optimizerHandle: OpaquePointer!,
    _ given: UnsafePointer<ga_accumulator_options>!
) -> ga_status {
    guarded { () throws(GAError) in
        let out = try required(out, "out")
        let chosen = try options(
            given,
            or: ga_accumulator_options(
                struct_size: 0, loss_reduction: GA_REDUCTION_SUM, accumulation_steps: 1, max_grad_norm: 0,
                max_grad_value: 0, agc_clipping: 0, agc_eps: 1e-3),
            firstVersion: 24)
        let steps = Int(chosen.accumulation_steps)
        let accumulator = try Accumulator(
            try optimizer(optimizerHandle),
            Accumulator.Options(
                lossReduction: try constant(chosen.loss_reduction, "loss_reduction"), accumulationSteps: steps,
                maxGradNorm: unlessZero(chosen.max_grad_norm), maxGradValue: unlessZero(chosen.max_grad_value),
                agcClipping: unlessZero(chosen.agc_clipping), agcEps: chosen.agc_eps))
        out.pointee = try HandleTable.shared.insert(accumulator, .accumulator)
    }
}

@_cdecl("ga_accumulator_free") @implementation
public func ga_accumulator_free(_ accumulator: OpaquePointer!) {
    freeHandle(accumulator, .accumulator)
}

@_cdecl("ga_accumulate") @implementation
public func ga_accumulate(_ handle: OpaquePointer!, _ loss: OpaquePointer!, _ weight: Double) -> ga_status {
    guarded { () throws(GAError) in try accumulator(handle).accumulate(tensor(loss, "loss"), weight: weight) }
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
            gradients: Array(try array(gradients, count, "gradients")), type, loss: loss, weight: weight)
    }
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
    guarded { () throws(GAError) in
        let accumulator = try accumulator(handle)
        if let out { _ = try structSize(UnsafeRawPointer(out), of: ga_report.self, "report", zeroTail: false) }
        let report = try accumulator.step()
        guard let out else { return }
        try store(
            ga_report(
                struct_size: 0, outcome: report.outcome.rawValue, loss: report.loss, weight: report.weight,
                micro_batches: Int64(report.microBatches), gradient_norm: report.gradientNorm,
                clip_factor: report.clipFactor, learning_rate: report.learningRate,
                update_count: Int64(report.updateCount)),
            to: out)
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
        guard count == norms.count else {
            throw GAError(
                .invalidArgument,
                "count is \(count), but the optimizer has \(norms.count) parameters: make room for those")
        }
        out.update(from: norms, count: norms.count)
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

/// An option that 0 turns off.
private func unlessZero(_ value: Double) -> Double? { value == 0 ? nil : value }

private func accumulator(_ handle: OpaquePointer?) throws(GAError) -> Accumulator {
    try borrow(handle, .accumulator, "accumulator")
}
