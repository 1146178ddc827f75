import CShims

/// The recorded operations that a loss depends on, from the last to the first.
struct Graph {
    private var nodes: [Node]
    /// Of all inputs of all nodes, in the order of the nodes.
    private var routes: [GradientRoute]
    /// Where those of each node start.
    private var firstRoutes: [Int]
    /// Whether the loss depends on any leaf.
    private(set) var hasLeaves = false

    /// Finds the graph and prepares `sink` for its leaves; nothing is added yet.
    ///
    /// A leaf that is used more than once gets one place per use, numbered in the order of the forward pass, so that the
    /// chain of additions at each place is the same for every split.
    init(of loss: Tensor, into sink: GradientSink) throws(GAError) {
        let pass = Node.nextNumber()
        nodes = [Node("loss", [loss], loss) { dy, gradients throws(GAError) in try gradients.pass(dy, to: 0) }]
        nodes[0].pass = pass
        var found = 0
        var inputCount = 0
        while found < nodes.count {
            let node = nodes[found]
            found += 1
            try node.requireUsable()
            inputCount += node.inputs.count
            for input in node.inputs {
                guard let next = input.producer, next.pass != pass else { continue }
                next.pass = pass
                nodes.append(next)
            }
        }
        nodes.sort { $0.sequence > $1.sequence }

        routes = [GradientRoute](repeating: .nowhere, count: inputCount)
        firstRoutes = [Int](repeating: 0, count: nodes.count)
        var uses: [ObjectIdentifier: Int] = [:]
        var leaves: [Tensor] = []
        var route = inputCount
        for index in nodes.indices.reversed() {
            let inputs = nodes[index].inputs
            route -= inputs.count
            firstRoutes[index] = route
            for (number, input) in inputs.enumerated() {
                if input.producer != nil {
                    routes[route + number] = .node
                } else if input.isGradientLeaf {
                    let root = input.root
                    let place = uses[ObjectIdentifier(root), default: 0]
                    if place == 0 { leaves.append(root) }
                    routes[route + number] = .leaf(place: place)
                    uses[ObjectIdentifier(root)] = place + 1
                }
            }
        }
        hasLeaves = !leaves.isEmpty
        for leaf in leaves { try sink.prepare(leaf, places: uses[ObjectIdentifier(leaf)]!) }
    }

    /// Lets the gradient of a scalar loss, `seed`, flow to the leaves. The graph is used up, even where this fails.
    func backward(seed: Float, into sink: GradientSink) throws(GAError) {
        let gradient = try Tensor(uninitialized: nodes[0].layout)
        gradient.floats[0] = seed
        try backward(gradient, into: sink)
    }

    /// As ``backward(seed:into:)``, for a result of any shape and its contiguous gradient.
    func backward(_ gradient: Tensor, into sink: GradientSink) throws(GAError) {
        nodes[0].gradient = gradient
        do throws(GAError) {
            for index in nodes.indices { try nodes[index].run(routes, from: firstRoutes[index], sink) }
        } catch {
            for node in nodes { node.gradient = nil }
            throw error
        }
    }
}

/// Errors: `shape` or `dtype` unless the tensor is one float32 number that a gradient flows to.
func requireLoss(_ loss: Tensor, _ operation: StaticString) throws(GAError) {
    guard loss.elementCount == 1 else {
        throw GAError(.shape, "\(operation): loss has shape \(loss.shape): it must be one number; sum it first")
    }
    try loss.require(.float32, operation, "loss")
    guard loss.requiresGrad else { throw dependsOnNothing(operation) }
}

func dependsOnNothing(_ operation: StaticString) -> GAError {
    GAError(
        .invalidArgument,
        "\(operation): loss depends on no parameter: was it computed with recording on, from tensors that require a "
            + "gradient?")
}

/// Gradients of leaves as new tensors, beside any accumulator.
private final class FreshGradients: GradientSink {
    private var buffers: [ObjectIdentifier: [GradientBuffer]] = [:]

    func prepare(_ leaf: Tensor, places: Int) throws(GAError) {
        var list: [GradientBuffer] = []
        for _ in 0..<places { list.append(try GradientBuffer(shape: leaf.shape)) }
        buffers[ObjectIdentifier(leaf)] = list
    }

    func buffer(of leaf: Tensor, place: Int) -> GradientBuffer { buffers[ObjectIdentifier(leaf)]![place] }

    func total(of leaf: Tensor) throws(GAError) -> Tensor {
        try sum(of: buffers[ObjectIdentifier(leaf)] ?? [], shape: leaf.shape)
    }
}

/// The places of a leaf added in their order, as a new tensor.
func sum(of places: [GradientBuffer], shape: [Int]) throws(GAError) -> Tensor {
    let total = try Tensor.zeros(shape)
    var accumulate: Int32 = 0
    for place in places where !place.isEmpty {
        try elementwise(total.elementCount) { start, count in
            Runtime.kernels.add_scaled(
                total.floats + start, place.tensor.floats + start, place.tensor.dtype.format, 1, Int64(count),
                accumulate)
        }
        accumulate = 1
    }
    return total
}

extension Tensor {
    /// The gradients of this scalar with respect to leaves, as new tensors; the graph is used up.
    public func gradients(of inputs: [Tensor]) throws(GAError) -> [Tensor] {
        try requireLoss(self, "gradients")
        for input in inputs {
            guard input.isGradientLeaf && input.root === input else {
                throw GAError(
                    .invalidArgument, "gradients: \(input.label) in inputs is not a leaf that requires a gradient")
            }
        }
        let sink = FreshGradients()
        let graph = try Graph(of: self, into: sink)
        guard graph.hasLeaves else { throw dependsOnNothing("gradients") }
        try graph.backward(seed: 1, into: sink)
        var result: [Tensor] = []
        for input in inputs { result.append(try sink.total(of: input)) }
        return result
    }
}
