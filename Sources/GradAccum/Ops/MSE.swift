import CShims

extension Tensor {
    /// The squares of this prediction minus `target`, of equal shapes, summed or averaged over all elements.
    public func mse(_ target: Tensor, reduction: Reduction = .sum) throws(GAError) -> Tensor {
        guard dtype == .float32 && target.dtype == .float32 else {
            return try inFloat32("mse", "prediction").mse(target.inFloat32("mse", "target"), reduction: reduction)
        }
        try target.require(shape: shape, "mse", "target")
        let a = try packedData()
        let b = try target.packedData()
        let samples = elementCount == 0 ? 0 : rank == 0 ? 1 : shape[0]
        let perSample = elementCount / max(samples, 1)
        let divisor = reduction == .mean ? Float(max(elementCount, 1)) : 1
        var total = 0.0
        for sample in 0..<samples {
            total += Runtime.kernels.squared_error(
                a.floats + sample * perSample, b.floats + sample * perSample, Int64(perSample))
        }
        let out = try Tensor(loss: total / Double(divisor))
        return out.recorded("mse", from: [self, target], reading: [a, b], isMean: reduction == .mean) {
            dy, gradients throws(GAError) in
            let scale = 2 * (dy.floats[0] / divisor)
            for (input, (x, y)) in [(a, b), (b, a)].enumerated() {
                try gradients.add(to: input) { (out, accumulate) throws(GAError) in
                    try elementwise(x.elementCount) { start, count in
                        Runtime.kernels.scaled_difference(
                            out + start, x.floats + start, y.floats + start, scale, Int64(count), accumulate)
                    }
                }
            }
        }
    }
}
