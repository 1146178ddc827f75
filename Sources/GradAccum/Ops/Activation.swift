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
        try require(.float32, name, "x")
        let out = try Tensor(uninitialized: layout)
        let x = try packedData()
        try elementwise(elementCount) { start, count in
            Runtime.kernels.unary(op, out.floats + start, x.floats + start, Int64(count))
        }
        return out.recorded(name, from: [self]) { dy, gradients throws(GAError) in
            try gradients.add(to: 0) { (dx, accumulate) throws(GAError) in
                try elementwise(dy.elementCount) { start, count in
                    Runtime.kernels.unary_gradient(
                        op, dx + start, dy.floats + start, x.floats + start, Int64(count), accumulate)
                }
            }
        }
    }
}
