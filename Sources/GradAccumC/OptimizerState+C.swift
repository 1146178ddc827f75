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
    withState(of: handle, out, "out", size_bytes, "save_state") { (optimizer, bytes) throws(GAError) in
        try optimizer.saveState(into: UnsafeMutableRawBufferPointer(mutating: bytes))
    }
}

@_cdecl("ga_optimizer_load_state") @implementation
public func ga_optimizer_load_state(
    _ handle: OpaquePointer!, _ state: UnsafeRawPointer!, _ size_bytes: Int64
) -> ga_status {
    withState(of: handle, state, "state", size_bytes, "load_state") { (optimizer, bytes) throws(GAError) in
        try optimizer.loadState(bytes)
    }
}

private func withState(
    of handle: OpaquePointer?, _ address: UnsafeRawPointer?, _ name: StaticString, _ size_bytes: Int64,
    _ operation: StaticString, _ body: (Optimizer, UnsafeRawBufferPointer) throws(GAError) -> Void
) -> ga_status {
    guarded { () throws(GAError) in
        let optimizer = try optimizer(handle)
        let address = try required(address, name)
        guard size_bytes >= 0 else {
            throw GAError(.invalidArgument, "\(operation): size_bytes is \(size_bytes): it must be at least 0")
        }
        try body(optimizer, UnsafeRawBufferPointer(start: address, count: Int(size_bytes)))
    }
}
