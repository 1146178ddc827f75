import CGradAccum
import GradAccum

@_cdecl("ga_average_create") @implementation
public func ga_average_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ optimizerHandle: OpaquePointer!,
    _ given: UnsafePointer<ga_average_options>!
) -> ga_status {
    guarded { () throws(GAError) in
        let out = try required(out, "out")
        let chosen = try options(
            given,
            or: ga_average_options(
                struct_size: 0, clock: GA_CLOCK_UPDATES, decay: 0.999, half_life: 0, warmup: 0, reserved: 0))
        let clock: UpdateClock = try constant(chosen.clock, "clock")
        guard chosen.half_life != 0 || clock == .updates else {
            throw GAError(
                .invalidArgument, "average: clock is that of weight, and decay is per update: give a half_life instead")
        }
        let average = try WeightAverage(
            try optimizer(optimizerHandle),
            chosen.half_life == 0 ? .perUpdate(chosen.decay) : .halfLife(chosen.half_life, clock),
            isWarmedUp: try flag(chosen.warmup, "warmup"))
        out.pointee = try HandleTable.shared.insert(average, .average)
    }
}

@_cdecl("ga_average_free") @implementation
public func ga_average_free(_ average: OpaquePointer!) {
    freeHandle(average, .average)
}

@_cdecl("ga_average_weights") @implementation
public func ga_average_weights(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ handle: OpaquePointer!, _ index: Int64
) -> ga_status {
    making(out) { () throws(GAError) in try average(handle).weights(Int(index)) }
}

@_cdecl("ga_average_swap_in") @implementation
public func ga_average_swap_in(_ handle: OpaquePointer!) -> ga_status {
    guarded { () throws(GAError) in try average(handle).swapIn() }
}

@_cdecl("ga_average_swap_out") @implementation
public func ga_average_swap_out(_ handle: OpaquePointer!) -> ga_status {
    guarded { () throws(GAError) in try average(handle).swapOut() }
}

@_cdecl("ga_average_reset") @implementation
public func ga_average_reset(_ handle: OpaquePointer!) -> ga_status {
    guarded { () throws(GAError) in try average(handle).reset() }
}

@_cdecl("ga_average_updates") @implementation
public func ga_average_updates(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<Int64>!) -> ga_status {
    guarded { () throws(GAError) in
        let average = try average(handle)
        try required(out, "out").pointee = Int64(average.updateCount)
    }
}

@_cdecl("ga_average_load") @implementation
public func ga_average_load(
    _ handle: OpaquePointer!, _ weights: UnsafePointer<OpaquePointer?>!, _ count: Int64, _ updates: Int64
) -> ga_status {
    guarded { () throws(GAError) in
        try average(handle).load(try tensors(weights, count, "weights"), updateCount: Int(updates))
    }
}

private func average(_ handle: OpaquePointer?) throws(GAError) -> WeightAverage {
    try borrow(handle, .average, "average")
}
