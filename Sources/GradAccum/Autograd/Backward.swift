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
    /// Each use of a leaf gets a place, numbered in the order of the forward pass, so that the chain of additions at each
    /// place is the same for every split.
    init(of loss: Tensor, into sink: GradientSink) throws(GAError) {
        let pass = Node.nextNumber()
        nodes = [
            Node("loss", from: [loss], reading: [], loss) { dy, gradients throws(GAError) in
                try gradients.pass(dy, to: 0)
            }
        ]
        nodes[0].pass = pass
        var found = 0
        var inputCount = 0
        while found < nodes.count {
            let node = nodes[found]
            found += 1
            try node.requireUsable()
            inputCount += node.inputs.count
            for input in node.inputs {
                guard let next = input.node, next.pass != pass else { continue }
                next.pass = pass
                nodes.append(next)
            }
        }
        nodes.sort { $0.sequence > $1.sequence }

        routes = [GradientRoute](repeating: .nowhere, count: inputCount)
        firstRoutes = [Int](repeating: 0, count: nodes.count)
        var uses: [ObjectIdentifier: LeafUses] = [:]
        var leaves: [Tensor] = []
        var route = inputCount
        for index in nodes.indices.reversed() {
            let node = nodes[index]
            route -= node.inputs.count
            firstRoutes[index] = route
            for (number, input) in node.inputs.enumerated() {
                if input.node != nil {
                    routes[route + number] = .node
                } else if let leaf = input.leaf {
                    let use = uses[ObjectIdentifier(leaf), default: LeafUses()].add(byRows: node.addsByRows(to: number))
                    if use == 0 { leaves.append(leaf) }
                    routes[route + number] = .leaf(use: use)
                }
            }
        }
        hasLeaves = !leaves.isEmpty
        for leaf in leaves { try sink.prepare(leaf, uses[ObjectIdentifier(leaf)]!) }
    }

    /// Lets the gradient of a scalar loss, `seed`, flow to the leaves. The graph is used up, even where this fails.
    func backward(seed: Float, into sink: GradientSink) throws(GAError) {
        let gradient = try Tensor(uninitialized: nodes[0].layout)
        gradient.floats[0] = seed
        try backward(consume gradient, into: sink)
    }

    /// As ``backward(seed:into:)``, for a result of any shape and its contiguous gradient.
    func backward(_ gradient: consuming Tensor, into sink: GradientSink) throws(GAError) {
        nodes[0].gradient = consume gradient
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
    private var gradients: [ObjectIdentifier: LeafGradient] = [:]

    func prepare(_ leaf: Tensor, _ uses: LeafUses) throws(GAError) {
        let gradient = LeafGradient(lifetime: .update)
        try gradient.prepare(leaf, uses)
        gradients[ObjectIdentifier(leaf)] = gradient
    }

    func place(of leaf: Tensor, use: Int) -> GradientPlace {
        gradients[ObjectIdentifier(leaf)]!.place(ofUse: use)
    }

    func total(of leaf: Tensor) throws(GAError) -> Tensor {
        try (gradients[ObjectIdentifier(leaf)] ?? LeafGradient(lifetime: .update)).sum(shape: leaf.shape)
    }
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
