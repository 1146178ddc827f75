import CGradAccum
import GradAccum

@_cdecl("ga_loss_scaler_create") @implementation
public func ga_loss_scaler_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ given: UnsafePointer<ga_loss_scaler_options>!
) -> ga_status {
    guarded { () throws(GAError) in
        let out = try required(out, "out")
        let defaults = LossScaler.Options()
        let chosen = try options(
            given,
            or: ga_loss_scaler_options(
                struct_size: 0, dynamic: 1, init_scale: defaults.initScale, growth_factor: defaults.growthFactor,
                backoff_factor: defaults.backoffFactor, growth_interval: Int64(defaults.growthInterval),
                hysteresis: Int64(defaults.hysteresis), min_scale: defaults.minScale, max_scale: defaults.maxScale,
                consecutive_hysteresis: 0, allow_any_scale: 0))
        let scaler = try LossScaler(
            LossScaler.Options(
                initScale: chosen.init_scale, growthFactor: chosen.growth_factor, backoffFactor: chosen.backoff_factor,
                growthInterval: Int(chosen.growth_interval), hysteresis: Int(chosen.hysteresis),
                isHysteresisConsecutive: try flag(chosen.consecutive_hysteresis, "consecutive_hysteresis"),
                minScale: chosen.min_scale, maxScale: chosen.max_scale, isDynamic: try flag(chosen.dynamic, "dynamic"),
                allowsAnyScale: try flag(chosen.allow_any_scale, "allow_any_scale")))
        out.pointee = try HandleTable.shared.insert(scaler, .lossScaler)
    }
}

@_cdecl("ga_loss_scaler_free") @implementation
public func ga_loss_scaler_free(_ scaler: OpaquePointer!) { freeHandle(scaler, .lossScaler) }

@_cdecl("ga_loss_scaler_scale") @implementation
public func ga_loss_scaler_scale(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<Double>!) -> ga_status {
    guarded { () throws(GAError) in
        let scaler = try lossScaler(handle)
        try required(out, "out").pointee = scaler.scale
    }
}

@_cdecl("ga_loss_scaler_unscale") @implementation
public func ga_loss_scaler_unscale(
    _ handle: OpaquePointer!, _ gradients: UnsafePointer<UnsafeMutableRawPointer?>!,
    _ element_counts: UnsafePointer<Int64>!, _ count: Int64, _ dtype: Int32, _ scale: Double, _ optimizer: Int64,
    _ norm: UnsafeMutablePointer<Double>!
) -> ga_status {
    guarded { () throws(GAError) in
        let scaler = try lossScaler(handle)
        let norm = try required(norm, "norm")
        let addresses = try array(gradients, count, "gradients")
        let counts = try array(element_counts, count, "element_counts")
        for (index, count) in counts.enumerated() where count < 0 || count > 1 << 40 {
            throw GAError(
                .invalidArgument, "element_counts[\(index)] is \(count): it must be in 0 ... \(1 << 40)")
        }
        norm.pointee = try scaler.unscale(
            zip(addresses, counts).map { ($0, Int($1)) }, try constant(dtype, "dtype"), scale: scale,
            optimizer: Int(optimizer))
    }
}

@_cdecl("ga_loss_scaler_update") @implementation
public func ga_loss_scaler_update(_ handle: OpaquePointer!) -> ga_status {
    guarded { () throws(GAError) in try lossScaler(handle).update() }
}

@_cdecl("ga_loss_scaler_save") @implementation
public func ga_loss_scaler_save(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<ga_loss_scaler_state>!)
    -> ga_status
{
    guarded { () throws(GAError) in
        let state = try lossScaler(handle).state
        try store(
            ga_loss_scaler_state(
                struct_size: UInt32(MemoryLayout<ga_loss_scaler_state>.size), reserved: 0, scale: state.scale,
                growth_tracker: Int64(state.growthTracker), hysteresis_tracker: Int64(state.hysteresisTracker)),
            to: required(out, "out"))
    }
}

@_cdecl("ga_loss_scaler_load") @implementation
public func ga_loss_scaler_load(_ handle: OpaquePointer!, _ given: UnsafePointer<ga_loss_scaler_state>!) -> ga_status {
    guarded { () throws(GAError) in
        let scaler = try lossScaler(handle)
        let state = try options(try required(given, "state"), or: ga_loss_scaler_state())
        try scaler.setState(
            LossScaler.State(
                scale: state.scale, growthTracker: Int(state.growth_tracker),
                hysteresisTracker: Int(state.hysteresis_tracker)))
    }
}

func lossScaler(_ handle: OpaquePointer?) throws(GAError) -> LossScaler {
    try borrow(handle, .lossScaler, "scaler")
}
