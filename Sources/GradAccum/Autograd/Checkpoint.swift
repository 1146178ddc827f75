/// Runs `block` on `inputs` without keeping its activations: backward runs it again (Chen et al., arXiv 1604.06174).
///
/// Results and gradients have the same bits as without. The block must compute the same each time, and may read parameters
/// and constants besides its inputs, but no other tensor that a gradient flows to.
/// Errors: those of the block; `invalidArgument` if it reads such a tensor.
public func checkpoint(
    _ inputs: [Tensor], _ block: @escaping ([Tensor]) throws(GAError) -> Tensor
) throws(GAError) -> Tensor {
    guard Recording.isOn else { return try block(inputs) }
    var sources: [Tensor] = []
    for input in inputs { sources.append(try input.contiguous()) }
    let (out, uses, operands) = try firstRun(sources, block)
    let activations = sources.filter(\.isActivation)
    // Every use of a leaf is an input of its own, so that it has the place that it would have without a checkpoint.
    let recorded = activations + uses.map(\.leaf)
    let compute = Compute.dtype
    let byRows = uses.indices.filter { uses[$0].isByRows }.map { activations.count + $0 }
    let read = sources + uses.map(\.leaf)
    return out.recorded("checkpoint", from: recorded, reading: read) { dy, gradients throws(GAError) in
        for operand in operands { try operand.requireUnchanged() }
        let (graph, sink) = try Compute.with(compute) { () throws(GAError) in
            try secondRun(sources, block, dy.shape, uses, gradients)
        }
        try graph.backward(consume dy, into: sink)
    }.addingByRows(to: byRows)
}

/// The result of the block without its graph, the leaves that it used, and what its gradients would be made from.
private func firstRun(
    _ sources: [Tensor], _ block: ([Tensor]) throws(GAError) -> Tensor
) throws(GAError) -> (Tensor, [LeafUse], [WatchedOperand]) {
    let run = try BlockRun(sources, block)
    let nodes = try run.nodes()
    return (run.result.detached(), run.leafUses(of: nodes), nodes.flatMap(\.watchedOperands))
}

/// The graph of the block, and where its gradients go.
private func secondRun(
    _ sources: [Tensor], _ block: ([Tensor]) throws(GAError) -> Tensor, _ shape: [Int], _ uses: [LeafUse],
    _ gradients: Gradients
) throws(GAError) -> (Graph, BlockSink) {
    let run = try Recording.on { () throws(GAError) in try BlockRun(sources, block) }
    guard run.result.shape == shape, run.leafUses(of: try run.nodes()) == uses else {
        throw GAError(.state, "checkpoint: the block has computed something else than in the forward pass")
    }
    let sink = BlockSink(run.standIns, uses, gradients)
    return (try Graph(of: run.result, into: sink), sink)
}

extension Tensor {
    /// Whether this is a result that a gradient flows to: a block gets a stand-in for it, at which its own graph ends.
    fileprivate var isActivation: Bool { requiresGrad && !isGradientLeaf }
}

/// A use of a leaf by an operation of a block.
private struct LeafUse: Equatable {
    let leaf: Tensor
    let isByRows: Bool

    static func == (a: LeafUse, b: LeafUse) -> Bool { a.leaf === b.leaf && a.isByRows == b.isByRows }
}

/// One recorded run of a block, from stand-ins for the activations among its inputs to its result.
private struct BlockRun {
    /// In the order of the inputs that they stand for.
    let standIns: [Tensor]
    let result: Tensor
    private let start: UInt64

    init(_ sources: [Tensor], _ block: ([Tensor]) throws(GAError) -> Tensor) throws(GAError) {
        start = Node.nextNumber()
        var inputs = sources
        var standIns: [Tensor] = []
        for (index, source) in sources.enumerated() where source.isActivation {
            inputs[index] = source.standIn()
            standIns.append(inputs[index])
        }
        self.standIns = standIns
        result = try block(inputs).contiguous()
    }

    /// The operations of the block that a gradient flows through, in the order of the forward pass.
    func nodes() throws(GAError) -> [Node] {
        var nodes: [Node] = []
        var seen: Set<ObjectIdentifier> = []
        var open = result.producer.map { [$0] } ?? []
        while let node = open.popLast() {
            guard seen.insert(ObjectIdentifier(node)).inserted else { continue }
            guard node.sequence > start else {
                throw GAError(
                    .invalidArgument,
                    "checkpoint: the block reads a result of \(node.operation) that needs a gradient and is not among its "
                        + "inputs: pass it as one")
            }
            nodes.append(node)
            open += node.inputs.compactMap(\.node)
        }
        return nodes.sorted { $0.sequence < $1.sequence }
    }

    /// The leaves that they used besides stand-ins, once per use.
    func leafUses(of nodes: [Node]) -> [LeafUse] {
        let own = Set(standIns.map(ObjectIdentifier.init))
        let uses = nodes.flatMap { node in
            node.inputs.enumerated().compactMap { number, input -> LeafUse? in
                guard let leaf = input.leaf, !own.contains(ObjectIdentifier(leaf)) else { return nil }
                return LeafUse(leaf: leaf, isByRows: node.addsByRows(to: number))
            }
        }
        // A block may hand on a leaf as it is.
        let root = result.root
        guard root.isGradientLeaf && !own.contains(ObjectIdentifier(root)) else { return uses }
        return uses + [LeafUse(leaf: root, isByRows: false)]
    }
}

/// Leads the gradients of a block's graph to where those of its checkpoint go.
///
/// A place is opened by the addition that needs it first: stand-ins whose originals share memory open it in turn, and each
/// finds what the ones before it have added.
private final class BlockSink: GradientSink {
    private let gradients: Gradients
    /// The inputs of the checkpoint that a stand-in or a leaf stands for.
    private var inputs: [ObjectIdentifier: [Int]] = [:]
    private var places: [GradientPlace?]

    /// `gradients` are those of the stand-ins' originals, followed by the uses of leaves.
    init(_ standIns: [Tensor], _ uses: [LeafUse], _ gradients: Gradients) {
        self.gradients = gradients
        let leaves = standIns + uses.map(\.leaf)
        places = Array(repeating: nil, count: leaves.count)
        for (input, leaf) in leaves.enumerated() { inputs[ObjectIdentifier(leaf), default: []].append(input) }
    }

    func prepare(_ leaf: Tensor, _ uses: LeafUses) throws(GAError) {}

    /// All uses of a stand-in add to the one gradient of its original; a leaf has a place per use.
    func place(of leaf: Tensor, use: Int) throws(GAError) -> GradientPlace {
        let input = input(leaf, use)
        if let place = places[input] { return place }
        let place = try gradients.place(of: input)
        places[input] = place
        return place
    }

    func take(_ gradient: Tensor, for leaf: Tensor, use: Int) -> Bool {
        gradients.take(gradient, for: input(leaf, use))
    }

    var underflow: Underflow? { gradients.underflow }

    func look(at values: Tensor, for leaf: Tensor) { gradients.show(values, for: input(leaf, 0)) }

    private func input(_ leaf: Tensor, _ use: Int) -> Int {
        let inputs = inputs[ObjectIdentifier(leaf)]!
        return inputs[min(use, inputs.count - 1)]
    }
}
