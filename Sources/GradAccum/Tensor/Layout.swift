/// How the elements of a tensor lie in memory. Tensors that lie alike share one, so that most results need none of
/// their own.
final class Layout: Sendable {
    let shape: [Int]
    /// In elements.
    let strides: [Int]
    let elementCount: Int
    /// Whether the elements lie in row-major order without gaps.
    let isContiguous: Bool
    /// Whether the strides are those of a new tensor: those of an axis of one element, which mean nothing, included.
    private let isPacked: Bool

    init(_ shape: [Int], strides: [Int]) {
        self.shape = shape
        self.strides = strides
        elementCount = shape.reduce(1, *)
        isContiguous = Shape.isContiguous(shape, strides)
        isPacked = isContiguous && strides == Shape.contiguousStrides(shape)
    }

    /// That of a new tensor. Errors: those of ``Shape/elementCount(_:_:)``.
    init(packed shape: [Int], _ operation: StaticString) throws(GAError) {
        elementCount = try Shape.elementCount(shape, operation)
        self.shape = shape
        strides = Shape.contiguousStrides(shape)
        isContiguous = true
        isPacked = true
    }

    /// The same shape in a new tensor.
    var packed: Layout { isPacked ? self : Layout(shape, strides: Shape.contiguousStrides(shape)) }

    /// The same shape but for the last axis, in a new tensor.
    func packed(lastSize size: Int, _ operation: StaticString) throws(GAError) -> Layout {
        if shape.last == size { return packed }
        return try Layout(packed: shape.dropLast() + [size], operation)
    }

    func hasShape(of other: Layout) -> Bool { self === other || shape == other.shape }

    /// That of a new tensor in the shape that both broadcast to. Errors: `shape` if they do not.
    static func broadcast(_ a: Layout, _ b: Layout, _ operation: StaticString) throws(GAError) -> Layout {
        if a.hasShape(of: b) { return a.packed }
        return try Layout(packed: try Shape.broadcast(a.shape, b.shape, operation), operation)
    }
}
