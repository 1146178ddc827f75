import CShims
import Synchronization

/// One recorded operation: what it read, and how a gradient flows back through it.
final class Node {
    /// Adds the gradients of the inputs, given the contiguous gradient of the output.
    typealias Backward = (Tensor, Gradients) throws(GAError) -> Void

    let operation: StaticString
    /// The order of recording, which is an order of computation.
    let sequence: UInt64
    /// Of the output.
    let shape: [Int]
    /// Whether the output is a mean over samples, which must not be mistaken for a sum.
    let isMean: Bool
    private(set) var inputs: [Tensor]
    private let versions: [Int]
    private var backward: Backward?

    /// The gradient of the output, while a backward pass adds to it.
    var gradient: Tensor?
    /// Where the gradient of each input goes: to a leaf's place of this number, to a node, or nowhere.
    var routes: [GradientRoute]
    /// The backward pass that found this node last.
    var pass: UInt64 = 0

    private static let counter = Atomic<UInt64>(1)
    static func nextNumber() -> UInt64 { counter.add(1, ordering: .relaxed).oldValue }

    init(
        _ operation: StaticString, _ inputs: [Tensor], _ output: Tensor, isMean: Bool = false,
        backward: @escaping Backward
    ) {
        self.operation = operation
        self.inputs = inputs
        self.isMean = isMean
        self.backward = backward
        shape = output.shape
        sequence = Node.nextNumber()
        versions = inputs.map(\.storage.version)
        routes = [GradientRoute](repeating: .nowhere, count: inputs.count)
    }

    /// Errors: `state` if the node is used up or an input has been written to since it was read.
    func requireUsable() throws(GAError) {
        guard backward != nil else {
            throw GAError(
                .state,
                "the graph is used up: its \(operation) has gone through backward already; compute the loss anew")
        }
        for (input, version) in zip(inputs, versions) where input.storage.version != version {
            throw GAError(
                .state,
                "\(input.label), read by \(operation), has changed since the forward pass: compute the loss anew")
        }
    }

    /// Lets the gradient flow to the inputs and drops what was saved for it.
    func run(_ sink: GradientSink) throws(GAError) {
        let backward = self.backward
        let dy = gradient
        defer { useUp() }
        guard let backward, let dy else { return }
        gradient = nil
        // No element, no gradient; a destination that is not written to must not count as written.
        guard dy.elementCount > 0 else { return }
        try backward(dy, Gradients(inputs, routes, sink))
    }

    private func useUp() {
        gradient = nil
        guard !inputs.isEmpty || backward != nil else { return }
        Trash.empty { trash in
            trash.tensors.append(contentsOf: inputs)
            trash.closures.append(backward)
            inputs = []
            backward = nil
        }
    }

    deinit { useUp() }
}

/// What nodes held on to, on its way out.
///
/// Freeing it can free further nodes, down a chain as long as the graph is deep; a list per thread makes a loop of
/// what would be a recursion.
private final class Trash {
    var tensors: [Tensor] = []
    var closures: [Node.Backward?] = []

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
        while trash.popTensor() || trash.popClosure() {}
        shims_set_thread_slot(slot, nil)
    }

    private func popTensor() -> Bool { tensors.popLast() != nil }
    private func popClosure() -> Bool { closures.popLast() != nil }
}
