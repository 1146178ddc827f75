import CShims

public enum GELUApproximation: Int32, CaseIterable, Sendable {
    /// x times the normal distribution function.
    case erf = 0
    /// Its approximation by tanh (Hendrycks and Gimpel, arXiv 1606.08415), as in GPT-2.
    case tanh = 1
}

extension Tensor {
    public func relu() throws(GAError) -> Tensor { try unary(SHIMS_RELU, "relu") }

    public func gelu(_ approximation: GELUApproximation = .erf) throws(GAError) -> Tensor {
        try unary(approximation == .tanh ? SHIMS_GELU_TANH : SHIMS_GELU_ERF, "gelu")
    }

    private func unary(_ op: shims_unary, _ name: StaticString) throws(GAError) -> Tensor {
        try requireFloat(name, "x")
        let x = try packedData()
        func make() throws(GAError) -> Tensor {
            let out = try Tensor(uninitialized: x.layout, x.dtype)
            try x.forEachPiece { start, count, values in
                guard out.dtype != .float32 else {
                    return Runtime.kernels.unary(op, out.floats + start, values, Int64(count))
                }
                Runtime.kernels.unary(op, values, values, Int64(count))
                out.storeFloats(values, start, count)
            }
            return out
        }
        return try make().recorded(name, from: [self], reading: [x], remaking: make) { dy, gradients throws(GAError) in
            try gradients.add(to: 0) { (dx, accumulate) throws(GAError) in
                try x.forEachPiece { start, count, values in
                    Runtime.kernels.unary_gradient(
                        op, dx + start, dy.floats + start, values, Int64(count), accumulate)
                }
            }
        }
    }

    /// Calls `body(start, count, values)` for pieces of this contiguous tensor: in place if it is float32, or else converted
    /// into memory that the body may write to.
    private func forEachPiece(_ body: (Int, Int, UnsafeMutablePointer<Float>) -> Void) throws(GAError) {
        guard dtype != .float32 else {
            return try elementwise(elementCount) { start, count in body(start, count, floats + start) }
        }
        // Pieces that stay in the first-level cache.
        let size = 4096
        try Runtime.parallel(tiles: (elementCount + size - 1) / size, scratch: size) { tile, scratch in
            let start = tile * size
            let count = min(size, elementCount - start)
            loadFloats(into: scratch, start, count)
            body(start, count, scratch)
        }
    }
}
