import CGradAccum
import GradAccum

@_cdecl("ga_add") @implementation
public func ga_add(_ out: UnsafeMutablePointer<OpaquePointer?>!, _ a: OpaquePointer!, _ b: OpaquePointer!) -> ga_status
{
    making(out) { () throws(GAError) in try tensor(a, "a") + tensor(b, "b") }
}

@_cdecl("ga_subtract") @implementation
public func ga_subtract(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ a: OpaquePointer!, _ b: OpaquePointer!
) -> ga_status {
    making(out) { () throws(GAError) in try tensor(a, "a") - tensor(b, "b") }
}

@_cdecl("ga_multiply") @implementation
public func ga_multiply(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ a: OpaquePointer!, _ b: OpaquePointer!
) -> ga_status {
    making(out) { () throws(GAError) in try tensor(a, "a") * tensor(b, "b") }
}

@_cdecl("ga_divide") @implementation
public func ga_divide(_ out: UnsafeMutablePointer<OpaquePointer?>!, _ a: OpaquePointer!, _ b: OpaquePointer!)
    -> ga_status
{
    making(out) { () throws(GAError) in try tensor(a, "a") / tensor(b, "b") }
}

@_cdecl("ga_matmul") @implementation
public func ga_matmul(_ out: UnsafeMutablePointer<OpaquePointer?>!, _ a: OpaquePointer!, _ b: OpaquePointer!)
    -> ga_status
{
    making(out) { () throws(GAError) in try matmul(tensor(a, "a"), tensor(b, "b")) }
}

@_cdecl("ga_linear") @implementation
public func ga_linear(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ x: OpaquePointer!, _ weight: OpaquePointer!, _ bias: OpaquePointer!
) -> ga_status {
    making(out) { () throws(GAError) in
        try tensor(x, "x").linear(tensor(weight, "weight"), optionalTensor(bias, "bias"))
    }
}

@_cdecl("ga_layer_norm") @implementation
public func ga_layer_norm(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ x: OpaquePointer!, _ weight: OpaquePointer!,
    _ bias: OpaquePointer!, _ eps: Double
) -> ga_status {
    making(out) { () throws(GAError) in
        try tensor(x, "x").layerNorm(optionalTensor(weight, "weight"), optionalTensor(bias, "bias"), eps: eps)
    }
}

@_cdecl("ga_gelu") @implementation
public func ga_gelu(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ x: OpaquePointer!, _ approximation: Int32
) -> ga_status {
    making(out) { () throws(GAError) in try tensor(x, "x").gelu(try constant(approximation, "approximation")) }
}

@_cdecl("ga_relu") @implementation
public func ga_relu(_ out: UnsafeMutablePointer<OpaquePointer?>!, _ x: OpaquePointer!) -> ga_status {
    making(out) { () throws(GAError) in try tensor(x, "x").relu() }
}

@_cdecl("ga_softmax") @implementation
public func ga_softmax(_ out: UnsafeMutablePointer<OpaquePointer?>!, _ x: OpaquePointer!, _ axis: Int32) -> ga_status {
    making(out) { () throws(GAError) in try tensor(x, "x").softmax(axis: Int(axis)) }
}

@_cdecl("ga_cross_entropy") @implementation
public func ga_cross_entropy(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ logits: OpaquePointer!, _ targets: OpaquePointer!,
    _ ignore_index: Int64, _ reduction: Int32
) -> ga_status {
    making(out) { () throws(GAError) in
        try tensor(logits, "logits").crossEntropy(
            tensor(targets, "targets"), ignoreIndex: ignore_index == noIgnoreIndex ? nil : ignore_index,
            reduction: try constant(reduction, "reduction"))
    }
}

@_cdecl("ga_linear_cross_entropy") @implementation
public func ga_linear_cross_entropy(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ hidden: OpaquePointer!, _ weight: OpaquePointer!,
    _ targets: OpaquePointer!, _ ignore_index: Int64, _ reduction: Int32
) -> ga_status {
    making(out) { () throws(GAError) in
        try tensor(hidden, "hidden").linearCrossEntropy(
            tensor(weight, "weight"), tensor(targets, "targets"),
            ignoreIndex: ignore_index == noIgnoreIndex ? nil : ignore_index,
            reduction: try constant(reduction, "reduction"))
    }
}

/// GA_NO_IGNORE_INDEX, which is an expression and so not imported.
private let noIgnoreIndex = Int64.min

@_cdecl("ga_mse") @implementation
public func ga_mse(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ prediction: OpaquePointer!, _ target: OpaquePointer!,
    _ reduction: Int32
) -> ga_status {
    making(out) { () throws(GAError) in
        try tensor(prediction, "prediction").mse(
            tensor(target, "target"), reduction: try constant(reduction, "reduction"))
    }
}

@_cdecl("ga_embedding") @implementation
public func ga_embedding(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ weight: OpaquePointer!, _ indices: OpaquePointer!
) -> ga_status {
    making(out) { () throws(GAError) in try tensor(weight, "weight").embedding(tensor(indices, "indices")) }
}

@_cdecl("ga_causal_attention") @implementation
public func ga_causal_attention(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ q: OpaquePointer!, _ k: OpaquePointer!, _ v: OpaquePointer!,
    _ heads: Int32
) -> ga_status {
    making(out) { () throws(GAError) in
        try tensor(q, "q").causalAttention(tensor(k, "k"), tensor(v, "v"), heads: Int(heads))
    }
}

@_cdecl("ga_reshape") @implementation
public func ga_reshape(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ x: OpaquePointer!, _ rank: Int32, _ shape: UnsafePointer<Int64>!
) -> ga_status {
    making(out) { () throws(GAError) in try tensor(x, "x").reshaped(try ints(shape, rank, "shape")) }
}

@_cdecl("ga_transpose") @implementation
public func ga_transpose(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ x: OpaquePointer!, _ axis_a: Int32, _ axis_b: Int32
) -> ga_status {
    making(out) { () throws(GAError) in try tensor(x, "x").transposed(Int(axis_a), Int(axis_b)) }
}

@_cdecl("ga_slice") @implementation
public func ga_slice(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ x: OpaquePointer!, _ axis: Int32, _ start: Int64, _ stop: Int64
) -> ga_status {
    making(out) { () throws(GAError) in
        guard start <= stop else {
            throw GAError(.invalidArgument, "slice: start \(start) is behind stop \(stop)")
        }
        return try tensor(x, "x").sliced(axis: Int(axis), Int(start)..<Int(stop))
    }
}

@_cdecl("ga_sum") @implementation
public func ga_sum(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ x: OpaquePointer!, _ axes: UnsafePointer<Int32>!,
    _ axis_count: Int32, _ keep_axes: Int32
) -> ga_status {
    making(out) { () throws(GAError) in
        try tensor(x, "x").sum(try chosenAxes(axes, axis_count), keepAxes: try flag(keep_axes, "keep_axes"))
    }
}

@_cdecl("ga_mean") @implementation
public func ga_mean(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ x: OpaquePointer!, _ axes: UnsafePointer<Int32>!,
    _ axis_count: Int32, _ keep_axes: Int32
) -> ga_status {
    making(out) { () throws(GAError) in
        try tensor(x, "x").mean(try chosenAxes(axes, axis_count), keepAxes: try flag(keep_axes, "keep_axes"))
    }
}

@_cdecl("ga_cast") @implementation
public func ga_cast(_ out: UnsafeMutablePointer<OpaquePointer?>!, _ x: OpaquePointer!, _ dtype: Int32) -> ga_status {
    making(out) { () throws(GAError) in try tensor(x, "x").cast(to: try constant(dtype, "dtype")) }
}

/// The axes of a reduction, nil for all.
private func chosenAxes(_ axes: UnsafePointer<Int32>?, _ count: Int32) throws(GAError) -> [Int]? {
    let chosen = try array(axes, Int64(count), most: Int64(GA_MAX_RANK), "axes", countedBy: "axis_count").map {
        Int($0)
    }
    return chosen.isEmpty ? nil : chosen
}
