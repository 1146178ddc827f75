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
        let half = dtype == .float32 ? nil : try Tensor(uninitialized: layout)
        try elementwise(elementCount) { start, count in
            let wide = half.map { $0.floats + start } ?? (x.floats + start)
            if dtype != .float32 {
                Runtime.kernels.to_f32(
                    wide, x.address.assumingMemoryBound(to: UInt16.self) + start, dtype.format, Int64(count))
            }
            if wanted == .float32 {
                Runtime.kernels.add_scaled(out.floats + start, wide, SHIMS_F32, 1, Int64(count), 0)
            } else {
                Runtime.kernels.from_f32(
                    out.address.assumingMemoryBound(to: UInt16.self) + start, wanted.format, wide, Int64(count))
            }
        }
        return out.recorded("cast", from: [self]) { dy, gradients throws(GAError) in
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
