import CGradAccum
import CShims
import GradAccum

// MARK: Version

@_cdecl("ga_version") @implementation
public func ga_version() -> UnsafePointer<CChar>! { cString("0.1.0") }

@_cdecl("ga_abi_version") @implementation
public func ga_abi_version() -> Int32 { GA_ABI_VERSION }

// MARK: Status and errors

@_cdecl("ga_status_name") @implementation
public func ga_status_name(_ status: ga_status) -> UnsafePointer<CChar>! {
    switch status {
    case GA_OK: cString("GA_OK")
    case GA_ERROR_INVALID_ARGUMENT: cString("GA_ERROR_INVALID_ARGUMENT")
    case GA_ERROR_SHAPE: cString("GA_ERROR_SHAPE")
    case GA_ERROR_DTYPE: cString("GA_ERROR_DTYPE")
    case GA_ERROR_STATE: cString("GA_ERROR_STATE")
    case GA_ERROR_OUT_OF_MEMORY: cString("GA_ERROR_OUT_OF_MEMORY")
    case GA_ERROR_OVERFLOW: cString("GA_ERROR_OVERFLOW")
    case GA_ERROR_INDEX: cString("GA_ERROR_INDEX")
    case GA_ERROR_NON_FINITE: cString("GA_ERROR_NON_FINITE")
    case GA_ERROR_UNSUPPORTED: cString("GA_ERROR_UNSUPPORTED")
    case GA_ERROR_INTERNAL: cString("GA_ERROR_INTERNAL")
    case GA_ERROR_OUTLIER: cString("GA_ERROR_OUTLIER")
    default: cString("unknown status")
    }
}

@_cdecl("ga_last_error") @implementation
public func ga_last_error() -> UnsafePointer<CChar>! { shims_last_error() }

/// A literal as a C string that lives for ever.
private func cString(_ literal: StaticString) -> UnsafePointer<CChar> {
    UnsafeRawPointer(literal.utf8Start).assumingMemoryBound(to: CChar.self)
}

// MARK: Runtime

@_cdecl("ga_set_num_threads") @implementation
public func ga_set_num_threads(_ count: Int32) -> ga_status {
    guarded { () throws(GAError) in try Runtime.setNumThreads(Int(count)) }
}

@_cdecl("ga_num_threads") @implementation
public func ga_num_threads(_ out: UnsafeMutablePointer<Int32>!) -> ga_status {
    guarded { () throws(GAError) in try required(out, "out").pointee = Int32(Runtime.numThreads) }
}

@_cdecl("ga_instruction_set") @implementation
public func ga_instruction_set(_ out: UnsafeMutablePointer<UnsafePointer<CChar>?>!) -> ga_status {
    guarded { () throws(GAError) in
        try required(out, "out").pointee = cString(try Runtime.instructionSet().name)
    }
}

@_cdecl("ga_set_compute_dtype") @implementation
public func ga_set_compute_dtype(_ dtype: Int32) -> ga_status {
    guarded { () throws(GAError) in try Compute.setDType(try constant(dtype, "dtype")) }
}

@_cdecl("ga_compute_dtype") @implementation
public func ga_compute_dtype(_ out: UnsafeMutablePointer<Int32>!) -> ga_status {
    guarded { () throws(GAError) in try required(out, "out").pointee = Compute.dtype.rawValue }
}

@_cdecl("ga_set_allocator") @implementation
public func ga_set_allocator(
    _ allocate: ga_allocate_fn!, _ release: ga_release_fn!, _ user: UnsafeMutableRawPointer!
) -> ga_status {
    guarded { () throws(GAError) in
        switch (allocate, release) {
        case (nil, nil): try Runtime.setAllocator(.system)
        case (let allocate?, let release?):
            try Runtime.setAllocator(Allocator(allocate: allocate, release: release, user: user))
        default:
            throw GAError(
                .invalidArgument, "set_allocator: allocate and release must both be given, or both be NULL")
        }
    }
}

@_cdecl("ga_memory_usage") @implementation
public func ga_memory_usage(_ out: UnsafeMutablePointer<ga_memory>!) -> ga_status {
    guarded { () throws(GAError) in
        let out = try required(out, "out")
        let usage = Runtime.memoryUsage
        try store(
            ga_memory(
                struct_size: 0, reserved: 0, live_bytes: Int64(usage.liveBytes), peak_bytes: Int64(usage.peakBytes),
                arena_bytes: Int64(usage.arenaBytes), allocator_calls: Int64(usage.allocatorCalls)),
            to: out)
    }
}

@_cdecl("ga_memory_reset_peak") @implementation
public func ga_memory_reset_peak() -> ga_status {
    guarded { () throws(GAError) in Runtime.resetPeakMemory() }
}

@_cdecl("ga_memory_trim") @implementation
public func ga_memory_trim() -> ga_status {
    guarded { () throws(GAError) in Runtime.trimMemory() }
}
