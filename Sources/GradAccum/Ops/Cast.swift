import CShims

extension Tensor {
    /// The elements converted to another dtype, to the nearest with ties to even; a gradient flows between floating types.
    ///
    /// Errors: `dtype` for a conversion between floating types and integers.
    public func cast(to wanted: DType) throws(GAError) -> Tensor {
        guard dtype.isFloatingPoint == wanted.isFloatingPoint else {
            throw GAError(.dtype, "cast: \(dtype) to \(wanted) is not a conversion between numbers of one kind")
        }
        let x = try packedData()
        let out = try Tensor(uninitialized: layout, wanted)
        guard dtype.isFloatingPoint else {
            try castIntegers(x, out)
            return out
        }
        if wanted == .float32 {
            try elementwise(elementCount) { start, count in x.loadFloats(into: out.floats + start, start, count) }
        } else {
            let wide = try x.floatData()
            try elementwise(elementCount) { start, count in out.storeFloats(wide.floats + start, start, count) }
        }
        return out.recorded("cast", from: [self], reading: []) { dy, gradients throws(GAError) in
            try gradients.pass(dy, to: 0)
        }
    }

    private func castIntegers(_ x: Tensor, _ out: Tensor) throws(GAError) {
        for i in 0..<elementCount {
            let value =
                dtype == .int64
                ? x.address.load(fromByteOffset: i * 8, as: Int64.self)
                : Int64(x.address.load(fromByteOffset: i * 4, as: Int32.self))
            if out.dtype == .int64 {
                out.address.storeBytes(of: value, toByteOffset: i * 8, as: Int64.self)
            } else if let narrow = Int32(exactly: value) {
                out.address.storeBytes(of: narrow, toByteOffset: i * 4, as: Int32.self)
            } else {
                throw GAError(.overflow, "cast: \(value) at position \(i) does not fit an int32")
            }
        }
    }
}
