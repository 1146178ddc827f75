import CShims

extension Tensor {
    /// Causal multi-head attention with these queries and `k`, `v`, all [batch, time, channels], cut into `heads`.
    ///
    /// Position t attends to 0 ... t with scores scaled by 1/sqrt(channels / heads). Scores are made for a block of
    /// queries at a time and made again for the gradient, from the log-sum-exp of their rows (Dao et al., arXiv 2205.14135).
    public func causalAttention(_ k: Tensor, _ v: Tensor, heads: Int) throws(GAError) -> Tensor {
        for (tensor, argument) in [(self, "q" as StaticString), (k, "k"), (v, "v")] {
            try tensor.requireFloat("causal_attention", argument)
            guard tensor.rank == 3 else {
                throw GAError(
                    .shape,
                    "causal_attention: \(argument) has shape \(tensor.shape), and [batch, time, channels] is needed")
            }
            try tensor.require(shape: shape, "causal_attention", argument)
        }
        guard heads > 0 && shape[2] % heads == 0 else {
            throw GAError(
                .invalidArgument, "causal_attention: heads is \(heads), which does not divide the \(shape[2]) channels")
        }
        let attention = AttentionShape(shape, heads: heads)
        let out = try Tensor(uninitialized: shape, attention.compute, for: "causal_attention")
        let logSumExp = try Tensor(uninitialized: [attention.batch, heads, attention.time], for: "causal_attention")
        let operands = try [self, k, v].map { (operand) throws(GAError) in
            isRowStrided(operand) ? operand : try operand.packedData()
        }
        let (query, key, value) = (operands[0], operands[1], operands[2])
        try attention.forward(Heads(out), Heads(query), Heads(key), Heads(value), logSumExp.floats)

        // The node must not hold its own output, or neither would ever be freed.
        let result = out.detached()
        let inputs = [self, k, v]
        let inPlace = zip(inputs, operands).allSatisfy { $0 === $1 }
        let layout = layout
        return out.recorded("causal_attention", from: inputs, reading: operands + [result]) {
            dy, gradients throws(GAError) in
            try gradients.underflow?.count(dy, attention.compute)
            func run(_ dq: Heads, _ dk: Heads, _ dv: Heads) throws(GAError) {
                try attention.backward(
                    dq, dk, dv, Heads(query), Heads(key), Heads(value), Heads(result), Heads(dy), logSumExp.floats)
            }
            var canOpen = inPlace
            for input in 0..<3 where canOpen { canOpen = try gradients.canOpenStrided(input) }
            if canOpen {
                let dq = Heads(try gradients.openStrided(0), .float32, query.strides)
                let dk = Heads(try gradients.openStrided(1), .float32, key.strides)
                let dv = Heads(try gradients.openStrided(2), .float32, value.strides)
                try run(dq, dk, dv)
                return
            }
            let scratch = try (0..<3).map { (_) throws(GAError) in try Tensor.zeros(layout.shape) }
            try run(Heads(scratch[0]), Heads(scratch[1]), Heads(scratch[2]))
            for input in 0..<3 { try gradients.pass(scratch[input], to: input) }
        }
    }
}

/// Whether the products can read the heads of [batch, time, channels] in place.
private func isRowStrided(_ x: Tensor) -> Bool { x.strides[2] == 1 && x.strides[1] >= x.shape[2] }

/// [batch, time, channels] as one matrix [time, channels / heads] per batch entry and head.
private struct Heads {
    private let whole: Matrix
    private let batchStep: Int

    init(_ address: UnsafeMutableRawPointer, _ dtype: DType, _ strides: [Int]) {
        whole = Matrix(address, dtype, row: strides[1])
        batchStep = strides[0]
    }

    init(_ tensor: Tensor) { self.init(tensor.address, tensor.dtype, tensor.strides) }

    func matrix(_ batch: Int, channel: Int) -> Matrix { whole.at(0, batch * batchStep + channel) }
}

/// The loops of attention over batch entries, heads and blocks of queries.
private struct AttentionShape {
    let batch: Int
    let time: Int
    let heads: Int
    let channels: Int
    /// The type of products and of the output.
    let compute = Compute.dtype
    private let blocks: Blocks
    private let scale: Float

    init(_ shape: [Int], heads: Int) {
        batch = shape[0]
        time = shape[1]
        self.heads = heads
        channels = shape[2] / heads
        blocks = Blocks(time, largest: 64)
        scale = 1 / Float(max(channels, 1)).squareRoot()
    }

    private func product(_ m: Int, _ n: Int, _ k: Int, accumulate: Int32 = 0) -> MatrixProduct {
        MatrixProduct(m: m, n: n, k: k, arithmetic: compute, accumulate: accumulate)
    }

    /// Floats up to a line of memory, where what is packed begins.
    private func wholeLines(_ floats: Int) -> Int { (floats + 15) & ~15 }

    private var transposedFloats: Int { PackedMatrix.floats(rows: channels, columns: time, compute) }
    private var packedFloats: Int { PackedMatrix.floats(rows: time, columns: channels, compute) }

    /// A head's [time, channels] as the second factor of all of its blocks' products, transposed.
    private func packTransposed(_ head: Matrix, into floats: UnsafeMutablePointer<Float>) -> PackedMatrix {
        PackedMatrix(head.transposed, rows: channels, columns: time, compute, into: floats)
    }

    private func pack(_ head: Matrix, into floats: UnsafeMutablePointer<Float>) -> PackedMatrix {
        PackedMatrix(head, rows: time, columns: channels, compute, into: floats)
    }

    /// Runs `body(batch entry, head, memory)` for what no other writes to, with `floats` of memory for itself and some for
    /// products after it.
    private func forEachHead(
        floats: Int, _ body: (Int, Int, UnsafeMutablePointer<Float>) -> Void
    ) throws(GAError) {
        var scratch = 0
        for block in 0..<blocks.count {
            let (rows, seen) = (blocks.count(block), blocks.start(block) + blocks.count(block))
            scratch = max(
                scratch, product(rows, seen, channels).scratch(), product(rows, channels, seen).scratch(for: compute),
                product(seen, channels, rows).scratch())
        }
        try Runtime.parallel(tiles: batch * heads, scratch: floats + scratch) { tile, memory in
            body(tile / heads, tile % heads, memory)
        }
    }

    func forward(
        _ out: Heads, _ query: Heads, _ key: Heads, _ value: Heads, _ logSumExp: UnsafeMutablePointer<Float>
    ) throws(GAError) {
        guard batch * time > 0 else { return }
        let scoreFloats = wholeLines(blocks.count(0) * time)
        let floats = scoreFloats + transposedFloats + packedFloats
        try forEachHead(floats: floats) { entry, head, memory in
            let scratch = memory + floats
            let channel = head * channels
            let (o, q) = (out.matrix(entry, channel: channel), query.matrix(entry, channel: channel))
            let packed = memory + scoreFloats
            let kTransposed = packTransposed(key.matrix(entry, channel: channel), into: packed)
            let v = pack(value.matrix(entry, channel: channel), into: packed + transposedFloats)
            for block in 0..<blocks.count {
                let start = blocks.start(block)
                let rows = blocks.count(block)
                let seen = start + rows
                let scores = Matrix(memory, row: seen)
                product(rows, seen, channels).runAlone(scores, q.at(start, 0), kTransposed, scratch)
                Runtime.kernels.attention_softmax(
                    scores.floats, logSumExp + ((entry * heads + head) * time + start), Int64(rows), Int64(seen),
                    Int64(seen), Int64(start), scale)
                product(rows, channels, seen).runAlone(o.at(start, 0), scores, v, scratch)
            }
        }
    }

    /// Adds to `dq`, `dk` and `dv`.
    func backward(
        _ dq: Heads, _ dk: Heads, _ dv: Heads, _ query: Heads, _ key: Heads, _ value: Heads, _ out: Heads,
        _ dy: Heads, _ logSumExp: UnsafeMutablePointer<Float>
    ) throws(GAError) {
        guard batch * time > 0 else { return }
        let rowsOfBlock = blocks.count(0)
        // The scores first, where the output is too before them; their gradient; one number per row.
        let scoreFloats = rowsOfBlock * max(time, channels)
        let packedAt = wholeLines(2 * scoreFloats + rowsOfBlock)
        let floats = packedAt + 2 * transposedFloats + packedFloats
        try forEachHead(floats: floats) { entry, head, memory in
            let (scratch, delta) = (memory + floats, memory + 2 * scoreFloats)
            let channel = head * channels
            let (q, o) = (query.matrix(entry, channel: channel), out.matrix(entry, channel: channel))
            let kMatrix = key.matrix(entry, channel: channel)
            let packed = memory + packedAt
            let kTransposed = packTransposed(kMatrix, into: packed)
            let vTransposed = packTransposed(
                value.matrix(entry, channel: channel), into: packed + transposedFloats)
            let k = pack(kMatrix, into: packed + 2 * transposedFloats)
            let (dqs, dks) = (dq.matrix(entry, channel: channel), dk.matrix(entry, channel: channel))
            let (dvs, dos) = (dv.matrix(entry, channel: channel), dy.matrix(entry, channel: channel))
            for block in 0..<blocks.count {
                let start = blocks.start(block)
                let rows = blocks.count(block)
                let seen = start + rows
                let (scores, dScores) = (Matrix(memory, row: seen), Matrix(memory + scoreFloats, row: seen))
                let doBlock = dos.at(start, 0)
                let oBlock = o.at(start, 0).asFloats(rows: rows, columns: channels, memory)
                Runtime.kernels.dot_rows(
                    delta, doBlock.floats, Int64(doBlock.row), oBlock.floats, Int64(oBlock.row), Int64(rows),
                    Int64(channels))
                product(rows, seen, channels).runAlone(scores, q.at(start, 0), kTransposed, scratch)
                product(rows, seen, channels).runAlone(dScores, doBlock, vTransposed, scratch)
                Runtime.kernels.attention_softmax_gradient(
                    scores.floats, dScores.floats, logSumExp + ((entry * heads + head) * time + start), delta,
                    Int64(rows), Int64(seen), Int64(seen), Int64(start), scale)
                product(seen, channels, rows, accumulate: 1).runAlone(dvs, scores.transposed, doBlock, scratch)
                product(rows, channels, seen, accumulate: 1).runAlone(dqs.at(start, 0), dScores, k, scratch)
                product(seen, channels, rows, accumulate: 1)
                    .runAlone(dks, dScores.transposed, q.at(start, 0), scratch)
            }
        }
    }
}
