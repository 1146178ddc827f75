/// An input of a recorded operation as its gradient sees it, which keeps none of an activation's elements in memory.
struct Edge {
    /// The operation that made the input's root, if a gradient flows through it.
    let node: Node?
    /// The input's root, if it was a leaf for gradients when the edge was made.
    let root: Tensor?
    /// Of the input.
    let layout: Layout
    /// Of the input's first element from that of its root.
    let offset: Int

    init(to input: Tensor) {
        let root = input.root
        node = root.node
        self.root = root.isLeaf ? root : nil
        layout = input.layout
        offset = input.offset - root.offset
    }

    /// The input's root, if it is still a leaf for gradients. Routes are made of this, and hold from then on.
    var leaf: Tensor? { if let root, root.isLeaf { root } else { nil } }

    /// That of the root. The edge leads to a node or a leaf.
    var rootLayout: Layout { node?.layout ?? root!.layout }
}
