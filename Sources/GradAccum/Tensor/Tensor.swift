/// An array of numbers with a shape, and what autograd needs to know of it.
///
/// A view (reshape, transpose, slice) shares its storage and its gradient with the tensor that it was taken from, its
/// `root`. Sizes and strides are in elements.
public final class Tensor {
    public let dtype: DType
    let layout: Layout
    let storage: Storage
    let offset: Int
    private let viewed: Tensor?

    /// The operation that made this tensor, where a gradient flows through it.
    private(set) var node: Node?
    private(set) var isLeaf = false
    /// Who updates this tensor, if it is a parameter.
    weak var owner: Optimizer?
    var indexInOwner = 0

    /// The value of a loss before it was rounded to float32, for reports.
    var unroundedLoss: Double?

    /// A name for error sentences: one line of at most 63 bytes.
    public var name: String? {
        didSet {
            name = name.map { name in
                var line = ""
                for scalar in name.unicodeScalars {
                    let next = scalar.properties.generalCategory == .control ? " " : String(scalar)
                    guard line.utf8.count + next.utf8.count <= 63 else { break }
                    line += next
                }
                return line
            }
        }
    }

    init(_ storage: Storage, _ dtype: DType, _ layout: Layout, offset: Int = 0, viewOf root: Tensor? = nil) {
        self.storage = storage
        self.dtype = dtype
        self.layout = layout
        self.offset = offset
        viewed = root
    }

    /// An uninitialised contiguous tensor.
    convenience init(
        uninitialized shape: [Int], _ dtype: DType = .float32, for operation: StaticString,
        lifetime: Arena.Lifetime = .update
    ) throws(GAError) {
        try self.init(uninitialized: try Layout(packed: shape, operation), dtype, lifetime: lifetime)
    }

    /// An uninitialised contiguous tensor in the shape of a layout.
    convenience init(
        uninitialized layout: Layout, _ dtype: DType = .float32, lifetime: Arena.Lifetime = .update
    ) throws(GAError) {
        let byteCount = layout.elementCount * dtype.byteCount
        self.init(try Storage(byteCount: byteCount, for: lifetime), dtype, layout.packed)
    }

    /// A tensor of zeros. Errors: `overflow`, `outOfMemory`, `invalidArgument` for a negative size.
    public static func zeros(_ shape: [Int], _ dtype: DType = .float32) throws(GAError) -> Tensor {
        let tensor = try Tensor(uninitialized: shape, dtype, for: "tensor")
        let address = tensor.address
        let byteCount = tensor.elementCount * dtype.byteCount
        try Runtime.parallel(count: byteCount, grain: 1 << 20) { start, size in
            (address + start).initializeMemory(as: UInt8.self, repeating: 0, count: size)
        }
        return tensor
    }

    /// A tensor with a copy of `values` in row-major order.
    public convenience init(_ values: [Float], shape: [Int]) throws(GAError) {
        try self.init(copying: values, .float32, shape: shape)
    }

    /// A tensor of classes or indices with a copy of `values` in row-major order.
    public convenience init(indices values: [Int64], shape: [Int]) throws(GAError) {
        try self.init(copying: values, .int64, shape: shape)
    }

    /// A scalar that remembers its value in double.
    convenience init(loss value: Double) throws(GAError) {
        try self.init(uninitialized: [], for: "loss")
        floats[0] = Float(value)
        unroundedLoss = value
    }

    private convenience init<Element: BitwiseCopyable>(
        copying values: [Element], _ dtype: DType, shape: [Int]
    ) throws(GAError) {
        try self.init(uninitialized: shape, dtype, for: "tensor")
        guard values.count == elementCount else {
            throw GAError(.shape, "tensor: \(values.count) values do not fill shape \(shape)")
        }
        values.withUnsafeBytes { if let base = $0.baseAddress { address.copyMemory(from: base, byteCount: $0.count) } }
    }

    /// A tensor on the caller's memory, without a copy; `release` is called once nothing looks at it any more.
    public convenience init(
        wrapping address: UnsafeMutableRawPointer, _ dtype: DType, shape: [Int], strides: [Int]? = nil,
        release: (() -> Void)? = nil
    ) throws(GAError) {
        _ = try Shape.elementCount(shape, "tensor")
        let strides = strides ?? Shape.contiguousStrides(shape)
        guard strides.count == shape.count else {
            throw GAError(.shape, "tensor: \(strides.count) strides for \(shape.count) axes")
        }
        try Tensor.checkSpan(shape, strides)
        guard Int(bitPattern: address) % dtype.byteCount == 0 else {
            throw GAError(.invalidArgument, "tensor: data is not aligned to its \(dtype.byteCount)-byte elements")
        }
        let storage = Storage(wrapping: address, release: release)
        self.init(storage, dtype, Layout(shape, strides: strides))
    }

    /// Errors: `invalidArgument` for a negative stride, `overflow` if the last element is out of the address space.
    private static func checkSpan(_ shape: [Int], _ strides: [Int]) throws(GAError) {
        var last = 0
        for (size, step) in zip(shape, strides) {
            guard step >= 0 else {
                throw GAError(.invalidArgument, "tensor: strides holds \(step): a stride is not negative")
            }
            let (distance, overflow) = max(size - 1, 0).multipliedReportingOverflow(by: step)
            let (sum, overflowOfSum) = last.addingReportingOverflow(distance)
            guard !overflow && !overflowOfSum && sum <= Int.max / 16 else {
                throw GAError(.overflow, "tensor: shape \(shape) with strides \(strides) leaves the address space")
            }
            last = sum
        }
    }

    // MARK: Elements

    /// The size of each axis.
    public var shape: [Int] { layout.shape }
    /// The distance between neighbours along each axis.
    public var strides: [Int] { layout.strides }
    /// The product of the sizes.
    public var elementCount: Int { layout.elementCount }
    var rank: Int { layout.shape.count }
    /// Of the elements.
    var byteCount: Int { elementCount * dtype.byteCount }
    var isContiguous: Bool { layout.isContiguous }
    var address: UnsafeMutableRawPointer { storage.address + offset * dtype.byteCount }
    var floats: UnsafeMutablePointer<Float> { address.assumingMemoryBound(to: Float.self) }

    /// The address of the first element, for reading and writing in place while the tensor lives.
    public var data: UnsafeMutableRawPointer {
        storage.expose()
        return address
    }

    /// Whether the library refuses to write to these elements.
    public var isReadOnly: Bool { storage.isReadOnly }

    /// Makes the library refuse every later write to this tensor and to all on the same memory, for good.
    ///
    /// Errors: `state` for a parameter of an optimizer.
    public func setReadOnly() throws(GAError) {
        guard storage.owner == nil else {
            throw GAError(.state, "read_only: \(label) is a parameter of an optimizer, which writes to it")
        }
        storage.makeReadOnly()
    }

    /// Errors: `invalidArgument` where the library must not write.
    func requireWritable(_ argument: @autoclosure () -> String) throws(GAError) {
        guard !storage.isReadOnly else {
            throw GAError(.invalidArgument, "\(argument()), \(label), is read-only: copy it to a tensor of its own")
        }
    }

    /// Leaves memory that was wrapped to the caller, who has not been told of success.
    package func giveBack() { storage.giveBack() }

    // MARK: Autograd

    /// The tensor that owns the gradient: itself, unless it is a view.
    var root: Tensor { viewed ?? self }

    /// The operation that made the root, where a gradient flows through it.
    var producer: Node? { if let viewed { viewed.node } else { node } }

    /// Whether this is a leaf for gradients rather than a result of an operation.
    var isGradientLeaf: Bool { if let viewed { viewed.isLeaf } else { isLeaf } }

    /// Whether a gradient flows to this tensor.
    public var requiresGrad: Bool { isGradientLeaf || producer != nil }

    /// Makes a float32 tensor that no operation produced a leaf for gradients, or an ordinary tensor again.
    public func setRequiresGrad(_ required: Bool) throws(GAError) {
        try requireLeafable("requires_grad: tensor")
        isLeaf = required
    }

    /// Errors: `state`, `dtype` or `shape` if this tensor cannot be a leaf for gradients.
    func requireLeafable(_ argument: @autoclosure () -> String) throws(GAError) {
        guard viewed == nil && node == nil else {
            throw GAError(.state, "\(argument()), \(label), is a view or the result of an operation: detach it first")
        }
        guard dtype == .float32 else {
            throw GAError(.dtype, "\(argument()), \(label), is \(dtype): a leaf for gradients is float32")
        }
        guard isContiguous else {
            throw GAError(.shape, "\(argument()), \(label), has strides \(strides): a leaf for gradients is contiguous")
        }
    }

    /// The same elements, through which no gradient flows.
    public func detached() -> Tensor { Tensor(storage, dtype, layout, offset: offset) }

    /// The same elements as a leaf for gradients, of any floating type: where the graph of a checkpoint's block ends.
    func standIn() -> Tensor {
        let leaf = detached()
        leaf.isLeaf = true
        return leaf
    }

    /// Remembers the operation that made this tensor, if one of its inputs needs a gradient.
    ///
    /// `operands`: the tensors whose elements `backward` reads. An input whose elements it does not read is not kept.
    /// `remaking`: makes this tensor again from `operands`.
    /// `isMean`: the result is a mean over samples; a number made of such a mean is one too.
    func recorded(
        _ operation: StaticString, from inputs: [Tensor], reading operands: [Tensor], isMean: Bool = false,
        remaking: Node.Remake? = nil, _ backward: @escaping Node.Backward
    ) -> Tensor {
        guard Recording.isOn, inputs.contains(where: { $0.requiresGrad }) else { return self }
        let isMean = isMean || (elementCount == 1 && inputs.contains { $0.elementCount == 1 && $0.isMean })
        node = Node(
            operation, from: inputs, reading: operands, self, isMean: isMean, remaking: remaking, backward: backward)
        return self
    }

    /// Whether this was made by a mean over samples, and so must not be mistaken for a sum.
    var isMean: Bool { root.node?.isMean ?? false }

    /// The name, or the shape where there is none.
    var label: String { name.map { "\"\($0)\"" } ?? "the tensor of shape \(shape)" }
}
