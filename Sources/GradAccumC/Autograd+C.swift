import CGradAccum
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
