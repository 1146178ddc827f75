import CShims
import Synchronization

/// One recorded operation: what it read, and how a gradient flows back through it.
final class Node {
    /// Adds the gradients of the inputs, given the contiguous gradient of the output, which it may let go of early.
    typealias Backward = (__owned Tensor, Gradients) throws(GAError) -> Void

    /// Makes the contiguous output again, to the same bits, from operands that the node keeps for its gradient.
    typealias Remake = () throws(GAError) -> Tensor

    let operation: StaticString
    /// The order of recording, which is an order of computation.
    let sequence: UInt64
    /// When the first operation of the graph behind this one was recorded, in nanoseconds of ``Monotonic``.
    let start: UInt64
    /// Of the output.
    let layout: Layout
    /// Whether the output is a mean over samples, which must not be mistaken for a sum.
    let isMean: Bool
    private(set) var inputs: [Edge]
    /// The tensors whose elements the backward function reads.
    private var operands: [Tensor]
    /// Of which roots the operation adds to few rows, and can add to ``RowGradients``.
    private var inputsByRows: [Int] = []
    private var backward: Backward?
    private var remaking: Remake?

    /// The gradient of the output, while a backward pass adds to it.
    var gradient: Tensor?
    /// The backward pass that found this node last.
    var pass: UInt64 = 0

    private static let counter = Atomic<UInt64>(1)

    /// A number for an event of autograd: later ones are larger.
    static func nextNumber() -> UInt64 { counter.add(1, ordering: .relaxed).oldValue }

    init(
        _ operation: StaticString, from inputs: [Tensor], reading operands: [Tensor], _ output: Tensor,
        isMean: Bool = false, remaking: Remake? = nil, backward: @escaping Backward
    ) {
        self.operation = operation
        self.inputs = inputs.map { Edge(to: $0) }
        // The clock is read where a graph begins only.
        var first = UInt64.max
        for case let node? in self.inputs.lazy.map(\.node) where node.start < first { first = node.start }
        start = first == .max ? Monotonic.now() : first
        self.operands = operands
        self.isMean = isMean
        self.remaking = remaking
        self.backward = backward
        layout = output.layout
        sequence = Node.nextNumber()
    }

    /// Errors: `state` if the node is used up, or an operand or a leaf has been written to since it was read.
    func requireUsable() throws(GAError) {
        guard backward != nil else { throw usedUp }
        for operand in operands { try requireUnchanged(operand) }
        // A gradient is of use to the parameters that it was taken at, even where it is not made from them.
        for input in inputs { if let leaf = input.leaf { try requireUnchanged(leaf) } }
    }

    private func requireUnchanged(_ tensor: Tensor) throws(GAError) {
        guard tensor.storage.lastWrite > sequence else { return }
        throw GAError(
            .state, "\(tensor.label), read by \(operation), has changed since the forward pass: compute the loss anew")
    }

    /// What the backward function reads, to be looked at by one that comes in its place.
    var watchedOperands: [WatchedOperand] {
        operands.map { WatchedOperand(storage: $0.storage, operation: operation, sequence: sequence) }
    }

    /// Whether the output need not be kept for another operation's gradient.
    var canRemake: Bool { remaking != nil }

    /// The output, made again. Errors: those of the operation; `state` if the node is used up.
    func remake() throws(GAError) -> Tensor {
        guard let remaking else { throw usedUp }
        return try remaking()
    }

    /// Whether the operation adds to few rows of an input's root.
    func addsByRows(to input: Int) -> Bool { inputsByRows.contains(input) }

    func noteAddingByRows(to inputs: [Int]) { inputsByRows = inputs }

    private var usedUp: GAError {
        GAError(
            .state, "the graph is used up: its \(operation) has gone through backward already; compute the loss anew")
    }

    /// Lets the gradient flow to the inputs and drops what was saved for it: a chain of nodes does not go with it, as
    /// the pass holds them all.
    ///
    /// `routes`: of all nodes of the pass, with those of this one's inputs from `firstRoute` on.
    /// Errors: those of the operation; `state` if a block of the caller has used the node up since the pass began.
    func run(_ routes: [GradientRoute], from firstRoute: Int, _ sink: GradientSink) throws(GAError) {
        let (inputs, backward) = (inputs, backward)
        let dy = gradient.take()
        self.inputs = []
        operands = []
        remaking = nil
        self.backward = nil
        guard let backward else { throw usedUp }
        // No element, no gradient; a destination that is not written to must not count as written.
        guard let dy, dy.elementCount > 0 else { return }
        try backward(consume dy, Gradients(inputs, routes, from: firstRoute, sink))
    }

    deinit {
        guard !inputs.isEmpty || backward != nil else { return }
        Trash.empty { trash in
            trash.edges.append(contentsOf: inputs)
            trash.tensors.append(contentsOf: operands)
            trash.closures.append((backward, remaking))
            inputs = []
            operands = []
            remaking = nil
            backward = nil
        }
    }
}

/// An operand that is not kept: while it exists it must not be written to, as if a node did keep it.
struct WatchedOperand {
    fileprivate(set) weak var storage: Storage?
    fileprivate let operation: StaticString
    fileprivate let sequence: UInt64

    /// Errors: `state`.
    func requireUnchanged() throws(GAError) {
        guard let storage, storage.lastWrite > sequence else { return }
        throw GAError(
            .state,
            "checkpoint: what \(operation) reads in the block has changed since the forward pass: compute the loss anew"
        )
    }
}

/// What nodes held on to, on its way out.
///
/// Freeing it can free further nodes, down a chain as long as the graph is deep; a list per thread makes a loop of
/// what would be a recursion.
private final class Trash {
    var edges: [Edge] = []
    var tensors: [Tensor] = []
    var closures: [(Node.Backward?, Node.Remake?)] = []

    /// Lets `fill` move things into this thread's trash, and frees them unless a caller further up is doing so.
    static func empty(_ fill: (Trash) -> Void) {
        let slot = Int32(SHIMS_SLOT_TRASH)
        if let open = shims_thread_slot(slot) {
            fill(Unmanaged<Trash>.fromOpaque(open).takeUnretainedValue())
            return
        }
        let trash = Trash()
        shims_set_thread_slot(slot, Unmanaged.passUnretained(trash).toOpaque())
        fill(trash)
        while trash.popEdge() || trash.popTensor() || trash.popClosure() {}
        shims_set_thread_slot(slot, nil)
    }

    private func popEdge() -> Bool { edges.popLast() != nil }
    private func popTensor() -> Bool { tensors.popLast() != nil }
    private func popClosure() -> Bool { closures.popLast() != nil }
}
