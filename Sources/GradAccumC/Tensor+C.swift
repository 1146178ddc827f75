import CGradAccum
import GradAccum

/// The shape that C passes as rank and sizes. Errors: `invalidArgument`, or `unsupported` for a device.
private func shape(
    _ device: Int32, _ rank: Int32, _ sizes: UnsafePointer<Int64>?
) throws(GAError) -> [Int] {
    guard device == GA_DEVICE_CPU else {
        throw GAError(.unsupported, "device is \(device): this version has GA_DEVICE_CPU only")
    }
    return try ints(sizes, rank, "shape")
}

func ints(_ values: UnsafePointer<Int64>?, _ rank: Int32, _ argument: StaticString) throws(GAError) -> [Int] {
    try array(values, Int64(rank), most: Int64(GA_MAX_RANK), argument, countedBy: "rank").map { Int($0) }
}

@_cdecl("ga_tensor_create") @implementation
public func ga_tensor_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ device: Int32, _ dtype: Int32, _ rank: Int32,
    _ sizes: UnsafePointer<Int64>!
) -> ga_status {
    making(out) { () throws(GAError) in
        try Tensor.zeros(try shape(device, rank, sizes), try constant(dtype, "dtype"))
    }
}

@_cdecl("ga_tensor_from_data") @implementation
public func ga_tensor_from_data(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ device: Int32, _ dtype: Int32, _ rank: Int32,
    _ sizes: UnsafePointer<Int64>!, _ data: UnsafeRawPointer!
) -> ga_status {
    making(out) { () throws(GAError) in
        let type: DType = try constant(dtype, "dtype")
        let sizes = try shape(device, rank, sizes)
        let data = try required(data, "data")
        let tensor = try Tensor.zeros(sizes, type)
        try tensor.copyIn(data, byteCount: tensor.elementCount * type.byteCount)
        return tensor
    }
}

@_cdecl("ga_tensor_wrap") @implementation
public func ga_tensor_wrap(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ device: Int32, _ dtype: Int32, _ rank: Int32,
    _ sizes: UnsafePointer<Int64>!, _ strides: UnsafePointer<Int64>!, _ data: UnsafeMutableRawPointer!,
    _ release: (@convention(c) (UnsafeMutableRawPointer?, UnsafeMutableRawPointer?) -> Void)!,
    _ user: UnsafeMutableRawPointer!
) -> ga_status {
    takingOver(out) { () throws(GAError) in
        let type: DType = try constant(dtype, "dtype")
        let sizes = try shape(device, rank, sizes)
        let data = try required(data, "data")
        let steps = strides == nil ? nil : try ints(strides, rank, "strides")
        let callback = release.map { release in { release(data, user) } }
        return try Tensor(wrapping: data, type, shape: sizes, strides: steps, release: callback)
    }
}

@_cdecl("ga_tensor_free") @implementation
public func ga_tensor_free(_ tensor: OpaquePointer!) {
    freeHandle(tensor, .tensor)
}

@_cdecl("ga_tensor_copy_in") @implementation
public func ga_tensor_copy_in(_ handle: OpaquePointer!, _ source: UnsafeRawPointer!, _ size_bytes: Int) -> ga_status {
    guarded { () throws(GAError) in
        try tensor(handle, "tensor").copyIn(try required(source, "source"), byteCount: size_bytes)
    }
}

@_cdecl("ga_tensor_copy_out") @implementation
public func ga_tensor_copy_out(
    _ handle: OpaquePointer!, _ destination: UnsafeMutableRawPointer!, _ size_bytes: Int
) -> ga_status {
    guarded { () throws(GAError) in
        try tensor(handle, "tensor").copyOut(try required(destination, "destination"), byteCount: size_bytes)
    }
}

@_cdecl("ga_tensor_data") @implementation
public func ga_tensor_data(
    _ handle: OpaquePointer!, _ out: UnsafeMutablePointer<UnsafeMutableRawPointer?>!
) -> ga_status {
    reading(handle, out) { tensor in tensor.data }
}

@_cdecl("ga_tensor_item") @implementation
public func ga_tensor_item(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<Double>!) -> ga_status {
    reading(handle, out) { tensor throws(GAError) in try tensor.item() }
}

@_cdecl("ga_tensor_dtype") @implementation
public func ga_tensor_dtype(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<Int32>!) -> ga_status {
    reading(handle, out) { tensor in tensor.dtype.rawValue }
}

@_cdecl("ga_tensor_rank") @implementation
public func ga_tensor_rank(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<Int32>!) -> ga_status {
    reading(handle, out) { tensor in Int32(tensor.shape.count) }
}

@_cdecl("ga_tensor_element_count") @implementation
public func ga_tensor_element_count(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<Int64>!) -> ga_status {
    reading(handle, out) { tensor in Int64(tensor.elementCount) }
}

@_cdecl("ga_tensor_shape") @implementation
public func ga_tensor_shape(
    _ handle: OpaquePointer!, _ out: UnsafeMutablePointer<Int64>!, _ capacity: Int32
) -> ga_status {
    guarded { () throws(GAError) in try write(try tensor(handle, "tensor").shape, to: out, capacity) }
}

@_cdecl("ga_tensor_strides") @implementation
public func ga_tensor_strides(
    _ handle: OpaquePointer!, _ out: UnsafeMutablePointer<Int64>!, _ capacity: Int32
) -> ga_status {
    guarded { () throws(GAError) in try write(try tensor(handle, "tensor").strides, to: out, capacity) }
}

@_cdecl("ga_tensor_fill") @implementation
public func ga_tensor_fill(_ handle: OpaquePointer!, _ value: Double) -> ga_status {
    guarded { () throws(GAError) in try tensor(handle, "tensor").fill(value) }
}

@_cdecl("ga_tensor_fill_normal") @implementation
public func ga_tensor_fill_normal(
    _ handle: OpaquePointer!, _ mean: Double, _ standard_deviation: Double, _ seed: UInt64
) -> ga_status {
    guarded { () throws(GAError) in
        try tensor(handle, "tensor").fillNormal(mean: mean, standardDeviation: standard_deviation, seed: seed)
    }
}

@_cdecl("ga_tensor_fill_uniform") @implementation
public func ga_tensor_fill_uniform(
    _ handle: OpaquePointer!, _ low: Double, _ high: Double, _ seed: UInt64
) -> ga_status {
    guarded { () throws(GAError) in try tensor(handle, "tensor").fillUniform(low: low, high: high, seed: seed) }
}

@_cdecl("ga_tensor_set_requires_grad") @implementation
public func ga_tensor_set_requires_grad(_ handle: OpaquePointer!, _ requires_grad: Int32) -> ga_status {
    guarded { () throws(GAError) in
        try tensor(handle, "tensor").setRequiresGrad(try flag(requires_grad, "requires_grad"))
    }
}

@_cdecl("ga_tensor_requires_grad") @implementation
public func ga_tensor_requires_grad(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<Int32>!) -> ga_status {
    reading(handle, out) { tensor in tensor.requiresGrad ? 1 : 0 }
}

@_cdecl("ga_tensor_set_read_only") @implementation
public func ga_tensor_set_read_only(_ handle: OpaquePointer!) -> ga_status {
    guarded { () throws(GAError) in try tensor(handle, "tensor").setReadOnly() }
}

@_cdecl("ga_tensor_read_only") @implementation
public func ga_tensor_read_only(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<Int32>!) -> ga_status {
    reading(handle, out) { tensor in tensor.isReadOnly ? 1 : 0 }
}

@_cdecl("ga_tensor_set_name") @implementation
public func ga_tensor_set_name(_ handle: OpaquePointer!, _ name: UnsafePointer<CChar>!) -> ga_status {
    guarded { () throws(GAError) in
        try tensor(handle, "tensor").name = String(cString: try required(name, "name"))
    }
}

@_cdecl("ga_tensor_detach") @implementation
public func ga_tensor_detach(_ out: UnsafeMutablePointer<OpaquePointer?>!, _ handle: OpaquePointer!) -> ga_status {
    making(out) { () throws(GAError) in try tensor(handle, "tensor").detached() }
}

@_cdecl("ga_scope_open") @implementation
public func ga_scope_open(_ out: UnsafeMutablePointer<OpaquePointer?>!) -> ga_status {
    guarded { () throws(GAError) in try required(out, "out").pointee = try Scope.open() }
}

@_cdecl("ga_scope_close") @implementation
public func ga_scope_close(
    _ scope: OpaquePointer!, _ keep: UnsafePointer<OpaquePointer?>!, _ keep_count: Int64
) -> ga_status {
    guarded { () throws(GAError) in
        _ = try tensors(keep, keep_count, "keep", countedBy: "keep_count")
        try Scope.close(scope, keeping: UnsafeBufferPointer(start: keep, count: Int(keep_count)).map { $0! })
    }
}

/// Reads something of a tensor into `out`.
private func reading<Value>(
    _ handle: OpaquePointer?, _ out: UnsafeMutablePointer<Value>?, _ body: (Tensor) throws(GAError) -> Value
) -> ga_status {
    guarded { () throws(GAError) in
        let tensor = try tensor(handle, "tensor")
        try required(out, "out").pointee = try body(tensor)
    }
}

private func write(_ values: [Int], to out: UnsafeMutablePointer<Int64>?, _ capacity: Int32) throws(GAError) {
    guard values.count <= Int(capacity) else {
        throw GAError(.invalidArgument, "capacity is \(capacity), but the tensor has \(values.count) axes")
    }
    guard !values.isEmpty else { return }
    let out = try required(out, "out")
    for (axis, value) in values.enumerated() { out[axis] = Int64(value) }
}
