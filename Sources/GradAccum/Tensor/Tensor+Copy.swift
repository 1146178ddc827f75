import CShims

/// Copies between tensors, and in and out of them.
extension Tensor {
    /// Copies contiguous elements in.
    ///
    /// Errors: `shape` if `byteCount` is not the whole tensor's; `invalidArgument` if the tensor is read-only.
    public func copyIn(_ source: UnsafeRawPointer, byteCount: Int) throws(GAError) {
        try requireWhole(byteCount, "copy_in")
        try requireWritable("copy_in: tensor")
        storage.noteWrite()
        let packed = layout.packed.strides
        try StridedCopy(shape, from: packed, to: strides, elementBytes: dtype.byteCount).run(from: source, to: address)
    }

    /// Copies the elements out in row-major order. Errors: `shape` if `byteCount` is not the whole tensor's.
    public func copyOut(_ destination: UnsafeMutableRawPointer, byteCount: Int) throws(GAError) {
        try requireWhole(byteCount, "copy_out")
        let packed = layout.packed.strides
        try StridedCopy(shape, from: strides, to: packed, elementBytes: dtype.byteCount)
            .run(from: address, to: destination)
    }

    private func requireWhole(_ byteCount: Int, _ operation: StaticString) throws(GAError) {
        guard byteCount == elementCount * dtype.byteCount else {
            throw GAError(
                .shape,
                "\(operation): size_bytes is \(byteCount), but the tensor of shape \(shape) has "
                    + "\(elementCount * dtype.byteCount) bytes")
        }
    }

    /// The elements of a float32 tensor in row-major order.
    public func values() throws(GAError) -> [Float] {
        try require(.float32, "values", "tensor")
        let packed = try packedData()
        return Array(UnsafeBufferPointer(start: packed.floats, count: elementCount))
    }

    /// The single element of a tensor that has one. Errors: `shape`.
    public func item() throws(GAError) -> Double {
        guard elementCount == 1 else {
            throw GAError(.shape, "item: the tensor has shape \(shape): it must have one element")
        }
        switch dtype {
        case .float32: return Double(floats[0])
        case .int32: return Double(address.load(as: Int32.self))
        case .int64: return Double(address.load(as: Int64.self))
        case .bfloat16, .float16:
            var value: Float = 0
            Runtime.kernels.to_f32(&value, address.assumingMemoryBound(to: UInt16.self), dtype.format, 1)
            return Double(value)
        }
    }

    /// This tensor if it is contiguous, else a contiguous copy: data only, no gradient.
    func packedData() throws(GAError) -> Tensor {
        isContiguous ? self : try packedCopy()
    }

    /// A contiguous copy: data only, no gradient.
    func packedCopy() throws(GAError) -> Tensor {
        let copy = try Tensor(uninitialized: layout, dtype)
        try StridedCopy(shape, from: strides, to: copy.strides, elementBytes: dtype.byteCount)
            .run(from: address, to: copy.address)
        return copy
    }

    /// The elements as contiguous float32, without a copy if they are: data only, no gradient.
    func floatData() throws(GAError) -> Tensor {
        let packed = try packedData()
        guard dtype != .float32 else { return packed }
        let wide = try Tensor(uninitialized: layout)
        try elementwise(elementCount) { start, count in
            packed.loadFloats(into: wide.floats + start, start, count)
        }
        return wide
    }

    /// Converts `count` elements from `start` of this contiguous tensor of a floating type.
    func loadFloats(into out: UnsafeMutablePointer<Float>, _ start: Int, _ count: Int) {
        if dtype == .float32 {
            Runtime.kernels.add_scaled(out, floats + start, SHIMS_F32, 1, Int64(count), 0)
        } else {
            let halves = address.assumingMemoryBound(to: UInt16.self)
            Runtime.kernels.to_f32(out, halves + start, dtype.format, Int64(count))
        }
    }

    /// The same elements, converted to this tensor's type.
    func storeFloats(_ source: UnsafePointer<Float>, _ start: Int, _ count: Int) {
        if dtype == .float32 {
            Runtime.kernels.add_scaled(floats + start, source, SHIMS_F32, 1, Int64(count), 0)
        } else {
            let halves = address.assumingMemoryBound(to: UInt16.self)
            Runtime.kernels.from_f32(halves + start, dtype.format, source, Int64(count))
        }
    }

    /// This tensor if it is float32, else converted to it so that the gradient flows through. Errors: `dtype` unless it is
    /// float32 or bfloat16.
    func inFloat32(_ operation: StaticString, _ argument: StaticString) throws(GAError) -> Tensor {
        try requireFloat(operation, argument)
        return dtype == .float32 ? self : try cast(to: .float32)
    }

    /// This tensor if it is contiguous, else a contiguous copy that the gradient flows through.
    func contiguous() throws(GAError) -> Tensor {
        if isContiguous { return self }
        let copy = try packedData()
        return copy.recorded("contiguous", from: [self], reading: []) { dy, gradients throws(GAError) in
            try gradients.pass(dy, to: 0)
        }
    }
}

/// A copy between two arrangements of the same elements.
struct StridedCopy {
    private let axes: PairedAxes
    private let elementBytes: Int

    init(_ shape: [Int], from: [Int], to: [Int], elementBytes: Int) {
        axes = PairedAxes(shape, from, to)
        self.elementBytes = elementBytes
    }

    func run(from source: UnsafeRawPointer, to destination: UnsafeMutableRawPointer) throws(GAError) {
        guard axes.rowSize > 0 && axes.rowCount > 0 else { return }
        try Runtime.parallel(count: axes.rowCount, grain: max(1, 16384 / axes.rowSize)) { first, count in
            for row in first..<(first + count) {
                let (from, to) = axes.offsets(ofRow: row)
                copyRow(source + from * elementBytes, destination + to * elementBytes)
            }
        }
    }

    private func copyRow(_ source: UnsafeRawPointer, _ destination: UnsafeMutableRawPointer) {
        let (size, from, to) = (axes.rowSize, axes.rowStepA, axes.rowStepB)
        if from == 1 && to == 1 {
            destination.copyMemory(from: source, byteCount: size * elementBytes)
            return
        }
        switch elementBytes {
        case 2: StridedCopy.copyElements(UInt16.self, source, from, destination, to, size)
        case 4: StridedCopy.copyElements(UInt32.self, source, from, destination, to, size)
        default: StridedCopy.copyElements(UInt64.self, source, from, destination, to, size)
        }
    }

    @inline(__always)
    private static func copyElements<Bits: BitwiseCopyable>(
        _ type: Bits.Type, _ source: UnsafeRawPointer, _ from: Int, _ destination: UnsafeMutableRawPointer, _ to: Int,
        _ size: Int
    ) {
        let source = source.assumingMemoryBound(to: type)
        let destination = destination.assumingMemoryBound(to: type)
        for i in 0..<size { destination[i * to] = source[i * from] }
    }
}
