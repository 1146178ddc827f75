import CGradAccum
import CShims
import GradAccum

@_cdecl("ga_set_recording") @implementation
public func ga_set_recording(_ recording: Int32) -> ga_status {
    guarded { () throws(GAError) in Recording.isOn = try flag(recording, "recording") }
}

@_cdecl("ga_recording") @implementation
public func ga_recording(_ out: UnsafeMutablePointer<Int32>!) -> ga_status {
    guarded { () throws(GAError) in try required(out, "out").pointee = Recording.isOn ? 1 : 0 }
}

@_cdecl("ga_gradients") @implementation
public func ga_gradients(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ loss: OpaquePointer!, _ inputs: UnsafePointer<OpaquePointer?>!,
    _ count: Int64
) -> ga_status {
    guarded { () throws(GAError) in
        let inputs = try tensors(inputs, count, "inputs")
        let out = try required(out, "out")
        let gradients = try tensor(loss, "loss").gradients(of: inputs)
        var handles: [OpaquePointer] = []
        for gradient in gradients { handles.append(try handle(of: gradient)) }
        for (index, handle) in handles.enumerated() { out[index] = handle }
    }
}

@_cdecl("ga_checkpoint") @implementation
public func ga_checkpoint(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ inputs: UnsafePointer<OpaquePointer?>!, _ count: Int64,
    _ block: ga_block_fn!, _ user: UnsafeMutableRawPointer!,
    _ release: (@convention(c) (UnsafeMutableRawPointer?) -> Void)!
) -> ga_status {
    making(out) { () throws(GAError) in
        let inputs = try tensors(inputs, count, "inputs")
        let user = ForeignUser(user, release)
        let block = ForeignBlock(function: try required(block, "block"), user: user)
        let result = try checkpoint(inputs) { (inputs) throws(GAError) in try block.run(inputs) }
        user.isOwned = true
        return result
    }
}

/// A block of the caller.
private struct ForeignBlock {
    let function: ga_block_fn
    let user: ForeignUser

    func run(_ inputs: [Tensor]) throws(GAError) -> Tensor {
        let scope = try Scope.open()
        defer { Scope.closeThrough(scope) }
        var handles: [OpaquePointer?] = []
        for input in inputs { handles.append(try handle(of: input)) }
        var out: OpaquePointer?
        let status = function(&out, handles, Int64(handles.count), user.pointer)
        if let kind = try errorKind(status, of: "checkpoint: block") {
            throw GAError(kind, String(cString: shims_last_error()))
        }
        return try tensor(out, "checkpoint: the out of block")
    }
}
