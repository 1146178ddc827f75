import CGradAccum
import GradAccum

@_cdecl("ga_optimizer_state_bytes") @implementation
public func ga_optimizer_state_bytes(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<Int64>!) -> ga_status {
    guarded { () throws(GAError) in
        let optimizer = try optimizer(handle)
        try required(out, "out").pointee = Int64(optimizer.stateByteCount)
    }
}

@_cdecl("ga_optimizer_save_state") @implementation
public func ga_optimizer_save_state(
    _ handle: OpaquePointer!, _ out: UnsafeMutableRawPointer!, _ size_bytes: Int64
) -> ga_status {
    guarded { () throws(GAError) in
        let optimizer = try optimizer(handle)
        let out = try required(out, "out")
        try optimizer.saveState(
            into: UnsafeMutableRawBufferPointer(start: out, count: try byteCount(size_bytes, "save_state")))
    }
}

@_cdecl("ga_optimizer_load_state") @implementation
public func ga_optimizer_load_state(
    _ handle: OpaquePointer!, _ state: UnsafeRawPointer!, _ size_bytes: Int64
) -> ga_status {
    guarded { () throws(GAError) in
        let optimizer = try optimizer(handle)
        let state = try required(state, "state")
        try optimizer.loadState(
            UnsafeRawBufferPointer(start: state, count: try byteCount(size_bytes, "load_state")))
    }
}

/// Errors: `invalidArgument` for a negative number, which no buffer can have.
private func byteCount(_ size_bytes: Int64, _ operation: StaticString) throws(GAError) -> Int {
    guard size_bytes >= 0 else {
        throw GAError(.invalidArgument, "\(operation): size_bytes is \(size_bytes): it must be at least 0")
    }
    return Int(size_bytes)
}
