extension Tensor {
    /// The same elements in another shape; one size may be -1. A view where the strides allow it.
    public func reshaped(_ wanted: [Int]) throws(GAError) -> Tensor {
        var sizes = wanted
        if let open = wanted.firstIndex(of: -1) {
            sizes[open] = 1
            let known = try Shape.elementCount(sizes, "reshape")
            guard known > 0 && elementCount % known == 0 else {
                throw GAError(
                    .shape, "reshape: shape \(wanted) does not divide the \(elementCount) elements of \(shape)")
            }
            sizes[open] = elementCount / known
        }
        guard try Shape.elementCount(sizes, "reshape") == elementCount else {
            throw GAError(.shape, "reshape: shape \(wanted) does not have the \(elementCount) elements of \(shape)")
        }
        let source = try contiguous()
        return source.view(sizes, strides: Shape.contiguousStrides(sizes), offset: source.offset)
    }

    /// A view with two axes exchanged; negative axes count from the last.
    public func transposed(_ axisA: Int = -2, _ axisB: Int = -1) throws(GAError) -> Tensor {
        let a = try Shape.axis(axisA, rank: rank, "transpose", "axis_a")
        let b = try Shape.axis(axisB, rank: rank, "transpose", "axis_b")
        var newShape = shape
        var newStrides = strides
        newShape.swapAt(a, b)
        newStrides.swapAt(a, b)
        return view(newShape, strides: newStrides, offset: offset)
    }

    /// A view of the elements `range` along an axis.
    public func sliced(axis: Int, _ range: Range<Int>) throws(GAError) -> Tensor {
        let axis = try Shape.axis(axis, rank: rank, "slice")
        guard range.lowerBound >= 0 && range.upperBound <= shape[axis] else {
            throw GAError(
                .invalidArgument,
                "slice: start \(range.lowerBound) and stop \(range.upperBound) are not in 0 ... \(shape[axis]), "
                    + "the size of axis \(axis)")
        }
        var newShape = shape
        newShape[axis] = range.count
        let start = newShape.contains(0) ? offset : offset + range.lowerBound * strides[axis]
        return view(newShape, strides: strides, offset: start)
    }

    private func view(_ shape: [Int], strides: [Int], offset: Int) -> Tensor {
        Tensor(
            storage, dtype, Layout(shape, strides: strides), offset: offset, viewOf: Recording.isOn ? root : nil)
    }
}
