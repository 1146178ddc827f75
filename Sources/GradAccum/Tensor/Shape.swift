/// Arithmetic on shapes: checked products, broadcasting and strides, all in elements.
enum Shape {
    static let maxRank = 8

    /// The number of elements; throws if the elements of the largest type would not fit the address space.
    static func elementCount(_ shape: [Int], _ operation: StaticString) throws(GAError) -> Int {
        guard shape.count <= maxRank else {
            throw GAError(.invalidArgument, "\(operation): rank is \(shape.count), and the most is \(maxRank)")
        }
        var count = 1
        for (axis, size) in shape.enumerated() {
            guard size >= 0 else {
                throw GAError(.invalidArgument, "\(operation): shape[\(axis)] is \(size): a size is not negative")
            }
            let (product, overflow) = count.multipliedReportingOverflow(by: max(size, 1))
            guard !overflow && product <= Int.max / 16 else {
                throw GAError(.overflow, "\(operation): shape \(shape) has more elements than memory can hold")
            }
            count = product
        }
        return shape.contains(0) ? 0 : count
    }

    static func contiguousStrides(_ shape: [Int]) -> [Int] {
        var strides = [Int](repeating: 1, count: shape.count)
        for axis in stride(from: shape.count - 2, through: 0, by: -1) {
            strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
        }
        return strides
    }

    /// Whether elements with these strides lie in row-major order without gaps.
    static func isContiguous(_ shape: [Int], _ strides: [Int]) -> Bool {
        if shape.contains(0) { return true }
        var expected = 1
        for axis in stride(from: shape.count - 1, through: 0, by: -1) where shape[axis] != 1 {
            guard strides[axis] == expected else { return false }
            expected *= shape[axis]
        }
        return true
    }

    /// The shape that `a` and `b` are repeated to, aligned at their last axis.
    static func broadcast(_ a: [Int], _ b: [Int], _ operation: StaticString) throws(GAError) -> [Int] {
        let rank = max(a.count, b.count)
        var result = [Int](repeating: 1, count: rank)
        for axis in 0..<rank {
            let sizeA = axis < rank - a.count ? 1 : a[axis - (rank - a.count)]
            let sizeB = axis < rank - b.count ? 1 : b[axis - (rank - b.count)]
            guard sizeA == sizeB || sizeA == 1 || sizeB == 1 else {
                throw GAError(
                    .shape, "\(operation): shapes \(a) and \(b) do not broadcast: sizes \(sizeA) and \(sizeB)")
            }
            result[axis] = sizeA == 1 ? sizeB : sizeA
        }
        return result
    }

    /// Strides with which a contiguous tensor of `shape` is read as if it had the shape `target`.
    static func broadcastStrides(_ shape: [Int], to target: [Int]) -> [Int] {
        let own = contiguousStrides(shape)
        let missing = target.count - shape.count
        return target.indices.map { axis in
            axis < missing || shape[axis - missing] == 1 ? 0 : own[axis - missing]
        }
    }

    /// An axis counted from the last if it is negative.
    static func axis(
        _ axis: Int, rank: Int, _ operation: StaticString, _ argument: StaticString = "axis"
    ) throws(GAError) -> Int {
        guard axis >= -rank && axis < rank else {
            throw GAError(
                .invalidArgument, "\(operation): \(argument) is \(axis), but the tensor has \(rank) axes")
        }
        return axis < 0 ? axis + rank : axis
    }
}
