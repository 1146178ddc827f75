import CShims

/// Where the gradients of leaves go.
protocol GradientSink: AnyObject {
    /// Errors: the leaf's gradient has no place to go.
    func prepare(_ leaf: Tensor, _ uses: LeafUses) throws(GAError)
    func place(of leaf: Tensor, use: Int) throws(GAError) -> GradientPlace
    /// Makes a tensor in the shape of the leaf its gradient, without a copy. Returns false where that cannot be.
    func take(_ gradient: Tensor, for leaf: Tensor, use: Int) -> Bool
    /// Counts what rounding gradients to a half format makes 0, if that is asked for.
    var underflow: Underflow? { get }
    /// Shows what is added to few rows of a leaf.
    func look(at values: Tensor, for leaf: Tensor)
}

extension GradientSink {
    func take(_ gradient: Tensor, for leaf: Tensor, use: Int) -> Bool { false }
    var underflow: Underflow? { nil }
    func look(at values: Tensor, for leaf: Tensor) {}
}

/// Where the gradient of one input of an operation goes, settled before a backward pass begins.
enum GradientRoute {
    case nowhere
    case node
    case leaf(use: Int)
}

extension Tensor {
    /// This result, with a note that the operation behind it adds to few rows of the roots of these inputs.
    func addingByRows(to inputs: [Int]) -> Tensor {
        node?.noteAddingByRows(to: inputs)
        return self
    }
}

/// Where one operation's backward adds the gradients of its inputs.
///
/// Destinations are contiguous in the shape of the input, and loaded first when something is there already. For a leaf
/// this is its accumulator itself, so a kernel that adds sample after sample extends one chain over all micro-batches.
/// An accumulator in bfloat16 takes the gradient of one sample after another, from memory that is theirs for a moment.
struct Gradients {
    private let inputs: [Edge]
    private let routes: [GradientRoute]
    private let firstRoute: Int
    private let sink: GradientSink

    /// `routes`: those of all operations of a graph, with the ones of `inputs` from `firstRoute` on.
    init(_ inputs: [Edge], _ routes: [GradientRoute], from firstRoute: Int, _ sink: GradientSink) {
        self.inputs = inputs
        self.routes = routes
        self.firstRoute = firstRoute
        self.sink = sink
    }

    var underflow: Underflow? { sink.underflow }

    private func route(_ input: Int) -> GradientRoute { routes[firstRoute + input] }

    func needed(_ input: Int) -> Bool { if case .nowhere = route(input) { false } else { true } }

    /// Whether the gradient goes to a leaf, and so into a chain over all samples of a window.
    func isLeaf(_ input: Int) -> Bool { if case .leaf = route(input) { true } else { false } }

    /// Calls `body(destination, accumulate)` if the input needs a gradient. `zeroed`: the body adds to some elements only.
    func add(
        to input: Int, zeroed: Bool = false,
        _ body: (UnsafeMutablePointer<Float>, Int32) throws(GAError) -> Void
    ) throws(GAError) {
        try add(to: input, samples: 1, zeroed: zeroed) { (destination, accumulate, _) throws(GAError) in
            try body(destination, accumulate)
        }
    }

    /// The same for an operation that adds up what many samples, or rows, have: `body(destination, accumulate, samples)` is
    /// called for all of them, or for one after another where each is an addition of its own.
    func add(
        to input: Int, samples: Int, zeroed: Bool = false,
        _ body: (UnsafeMutablePointer<Float>, Int32, Range<Int>) throws(GAError) -> Void
    ) throws(GAError) {
        guard needed(input) else { return }
        if let sum = try bf16Sum(of: input) {
            return try add(to: sum, input, samples: samples, zeroed: zeroed, body)
        }
        try addAtOnce(to: input, zeroed: zeroed) { (destination, accumulate) throws(GAError) in
            try body(destination, accumulate, 0..<samples)
        }
    }

    private func addAtOnce(
        to input: Int, zeroed: Bool, _ body: (UnsafeMutablePointer<Float>, Int32) throws(GAError) -> Void
    ) throws(GAError) {
        let x = inputs[input]
        let (view, accumulate) = try open(input, zeroed: zeroed)
        let (layout, strides) = (x.layout, x.layout.strides)
        guard !layout.isContiguous else { return try body(view, accumulate) }
        let temporary = try Tensor(uninitialized: layout)
        if accumulate != 0 {
            try StridedCopy(layout.shape, from: strides, to: temporary.strides, elementBytes: 4)
                .run(from: view, to: temporary.floats)
        }
        try body(temporary.floats, accumulate)
        try StridedCopy(layout.shape, from: temporary.strides, to: strides, elementBytes: 4)
            .run(from: temporary.floats, to: view)
    }

    /// The sum in bfloat16 that the gradient of a leaf goes to, if it does.
    func bf16Sum(of input: Int) throws(GAError) -> BF16Sum? {
        guard case .leaf(let use) = route(input),
            case .bf16(let sum) = try sink.place(of: inputs[input].root!, use: use)
        else { return nil }
        return sum
    }

    /// The same where the input is all of the leaf, element by element.
    func bf16SumOfWhole(_ input: Int) throws(GAError) -> BF16Sum? {
        let x = inputs[input]
        guard x.layout.isContiguous && x.layout.elementCount == x.rootLayout.elementCount else { return nil }
        return try bf16Sum(of: input)
    }

    private func add(
        to sum: BF16Sum, _ input: Int, samples: Int, zeroed: Bool,
        _ body: (UnsafeMutablePointer<Float>, Int32, Range<Int>) throws(GAError) -> Void
    ) throws(GAError) {
        let x = inputs[input]
        let gradient = try Tensor(uninitialized: x.layout)
        let isWhole = x.layout.isContiguous && x.layout.elementCount == x.rootLayout.elementCount
        let whole = isWhole ? gradient : try Tensor(uninitialized: x.rootLayout)
        if !isWhole { try fillZeros(whole.floats, whole.elementCount) }
        for sample in 0..<samples {
            if zeroed { try fillZeros(gradient.floats, gradient.elementCount) }
            try body(gradient.floats, 0, sample..<(sample + 1))
            if !isWhole {
                try StridedCopy(x.layout.shape, from: gradient.strides, to: x.layout.strides, elementBytes: 4)
                    .run(from: gradient.floats, to: whole.floats + x.offset)
            }
            try sum.add(whole.floats)
        }
    }

    /// The destination for the gradient of a needed input, in the input's own strides, with something to add to: zeros
    /// if there was nothing. Several inputs may share it. It must have one: see ``canOpenStrided(_:)``.
    func openStrided(_ input: Int) throws(GAError) -> UnsafeMutablePointer<Float> {
        try open(input, zeroed: true).0
    }

    /// Whether an input needs a gradient, and that has a destination to add to: a sum in bfloat16 is none.
    func canOpenStrided(_ input: Int) throws(GAError) -> Bool {
        guard needed(input) else { return false }
        return try bf16Sum(of: input) == nil
    }

    /// Shows the gradient of few rows of an input to where it goes, if that is a leaf.
    func show(_ values: Tensor, for input: Int) {
        if isLeaf(input) { sink.look(at: values, for: inputs[input].root!) }
    }

    /// The sums by rows that the gradient of a leaf goes to, if it does.
    func rows(of input: Int) throws(GAError) -> RowGradients? {
        guard case .leaf(let use) = route(input),
            case .rows(let rows) = try sink.place(of: inputs[input].root!, use: use)
        else { return nil }
        return rows
    }

    /// The gradient of a needed contiguous input as a place to add to: that of the leaf's use, if it is one.
    func place(of input: Int) throws(GAError) -> GradientPlace {
        let x = inputs[input]
        if case .leaf(let use) = route(input) { return try sink.place(of: x.root!, use: use) }
        let (_, accumulate) = try open(input, zeroed: false)
        let view = Tensor(x.node!.gradient!.storage, .float32, x.layout, offset: x.offset)
        return .dense(GradientBuffer(view, isEmpty: accumulate == 0))
    }

    /// Adds a whole gradient, without a copy where it is the first and the input is no view.
    func pass(_ gradient: Tensor, to input: Int) throws(GAError) {
        guard needed(input), !take(gradient, for: input) else { return }
        try add(to: input) { (out, accumulate) throws(GAError) in
            try elementwise(gradient.elementCount) { start, count in
                Runtime.kernels.add_scaled(out + start, gradient.floats + start, SHIMS_F32, 1, Int64(count), accumulate)
            }
        }
    }

    /// Makes a tensor in the shape of an input its gradient, without a copy, if it is the first and the input is no view.
    func take(_ gradient: Tensor, for input: Int) -> Bool {
        let x = inputs[input]
        guard x.layout === x.rootLayout else { return false }
        switch route(input) {
        case .nowhere:
            return false
        case .node:
            guard let node = x.node, node.gradient == nil else { return false }
            node.gradient = gradient
            return true
        case .leaf(let use):
            return sink.take(gradient, for: x.root!, use: use)
        }
    }

    /// The gradient of a needed input in its root's gradient, and 1 if it has a value to add to.
    private func open(_ input: Int, zeroed: Bool) throws(GAError) -> (UnsafeMutablePointer<Float>, Int32) {
        let x = inputs[input]
        let isPartial = zeroed || x.layout.elementCount != x.rootLayout.elementCount
        let whole: Tensor
        var isEmpty = false
        if case .leaf(let use) = route(input) {
            guard case .dense(let buffer) = try sink.place(of: x.root!, use: use) else {
                throw GAError(
                    .internal, "backward: a gradient went to a place of another kind than its operation adds to")
            }
            isEmpty = buffer.isEmpty
            buffer.fill()
            whole = buffer.tensor
        } else {
            let node = x.node!
            var gradient = node.gradient
            node.gradient = nil
            if gradient == nil {
                isEmpty = true
                whole = try Tensor(uninitialized: node.layout)
            } else if isKnownUniquelyReferenced(&gradient) {
                whole = gradient!
            } else {
                // It was passed on without a copy, and others read it.
                whole = try copy(gradient!)
            }
            node.gradient = whole
        }
        if isEmpty && isPartial { try fillZeros(whole.floats, whole.elementCount) }
        return (whole.floats + x.offset, isEmpty && !isPartial ? 0 : 1)
    }

    private func copy(_ gradient: Tensor) throws(GAError) -> Tensor {
        let copy = try Tensor(uninitialized: gradient.layout)
        try elementwise(copy.elementCount) { start, count in
            Runtime.kernels.add_scaled(copy.floats + start, gradient.floats + start, SHIMS_F32, 1, Int64(count), 0)
        }
        return copy
    }
}

/// Runs `body(start, count)` over elements that are computed one by one.
func elementwise(_ count: Int, _ body: (Int, Int) throws(GAError) -> Void) throws(GAError) {
    try Runtime.parallel(count: count, grain: 16384, body)
}

/// Calls `body(start, size)` for a share of the columns per thread, so that each reads long pieces of rows.
func forEachColumns(_ count: Int, _ body: (Int, Int) throws(GAError) -> Void) throws(GAError) {
    let shares = Blocks.balanced(count, largest: max(count, 1), times: 1, threads: Runtime.numThreads)
    try Runtime.parallel(tiles: shares.count) { share throws(GAError) in
        try body(shares.start(share), shares.count(share))
    }
}

func fillZeros(_ out: UnsafeMutablePointer<Float>, _ count: Int) throws(GAError) {
    try elementwise(count) { start, size in Runtime.kernels.fill(out + start, 0, Int64(size)) }
}
