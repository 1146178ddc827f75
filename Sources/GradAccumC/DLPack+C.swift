import CGradAccum
import CShims
import GradAccum

@_cdecl("ga_tensor_from_dlpack") @implementation
public func ga_tensor_from_dlpack(_ out: UnsafeMutablePointer<OpaquePointer?>!, _ managed: OpaquePointer!) -> ga_status
{
    takingOver(out) { () throws(GAError) in
        try Tensor(dlpack: UnsafeMutableRawPointer(try required(managed, "managed")))
    }
}

@_cdecl("ga_tensor_from_dlpack_unversioned") @implementation
public func ga_tensor_from_dlpack_unversioned(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ managed: OpaquePointer!
) -> ga_status {
    takingOver(out) { () throws(GAError) in
        try Tensor(unversionedDLPack: UnsafeMutableRawPointer(try required(managed, "managed")))
    }
}

@_cdecl("ga_tensor_to_dlpack") @implementation
public func ga_tensor_to_dlpack(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ handle: OpaquePointer!, _ copy: Int32
) -> ga_status {
    export(handle, copy, to: out) { (tensor, copy) throws(GAError) in try tensor.dlpack(copy: copy) }
}

@_cdecl("ga_tensor_to_dlpack_unversioned") @implementation
public func ga_tensor_to_dlpack_unversioned(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ handle: OpaquePointer!, _ copy: Int32
) -> ga_status {
    export(handle, copy, to: out) { (tensor, copy) throws(GAError) in try tensor.unversionedDLPack(copy: copy) }
}

private func export(
    _ handle: OpaquePointer?, _ copy: Int32, to out: UnsafeMutablePointer<OpaquePointer?>?,
    _ body: (Tensor, Bool) throws(GAError) -> UnsafeMutableRawPointer
) -> ga_status {
    guarded { () throws(GAError) in
        let out = try required(out, "out")
        out.pointee = OpaquePointer(try body(try tensor(handle, "tensor"), try flag(copy, "copy")))
    }
}

@_cdecl("ga_python_release") @implementation
public func ga_python_release(_ data: UnsafeMutableRawPointer!, _ object: UnsafeMutableRawPointer!) {
    shims_release_python_object(data, object)
}

@_cdecl("ga_python_capsule_destroy") @implementation
public func ga_python_capsule_destroy(_ capsule: UnsafeMutableRawPointer!) {
    shims_destroy_python_capsule(capsule)
}

@_cdecl("ga_python_array_addresses") @implementation
public func ga_python_array_addresses(
    _ addresses: UnsafeMutablePointer<UnsafeRawPointer?>!, _ arrays: UnsafeMutableRawPointer!, _ count: Int64,
    _ shapes: UnsafePointer<Int64>!, _ dtype: UnsafeRawPointer!, _ type: UnsafeRawPointer!, _ head_bytes: Int64
) -> Int64 {
    shims_python_array_addresses(addresses, arrays, count, shapes, dtype, type, head_bytes)
}
