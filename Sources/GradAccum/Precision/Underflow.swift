import CShims

/// Counts the numbers that rounding to a half format makes 0, of the gradients that a window's backward passes round: those of
/// the results of linear layers, of attention, and of the logits of a fused head.
final class Underflow {
    /// That were not 0 before.
    private var rounded = 0
    private var flushed = 0
    /// Of micro-batches that were committed.
    private var committed = (rounded: 0, flushed: 0)

    /// The share of numbers other than 0 that have become 0; 0 where nothing was rounded.
    var share: Double { rounded == 0 ? 0 : Double(flushed) / Double(rounded) }

    func empty() {
        committed = (0, 0)
        rollBack()
    }

    /// Keeps what the open micro-batch has counted.
    func commit() { committed = (rounded, flushed) }

    /// Forgets what the open micro-batch has counted.
    func rollBack() { (rounded, flushed) = committed }

    /// Counts in a gradient that is about to be rounded to `dtype`.
    func count(_ gradient: Tensor, _ dtype: DType) throws(GAError) {
        guard dtype != .float32 else { return }
        let pieces = Pieces([gradient.elementCount])
        try count(tiles: pieces.count) { (counts) throws(GAError) in
            try Runtime.parallel(tiles: pieces.count) { piece in
                let (_, start, size) = pieces[piece]
                Runtime.kernels.count_flushed(gradient.floats + start, dtype.format, Int64(size), counts + 2 * piece)
            }
        }
    }

    /// Adds up what `body` adds to for each of some tiles: numbers other than 0, and those of them that become 0.
    func count(tiles: Int, _ body: (UnsafeMutablePointer<Int64>) throws(GAError) -> Void) throws(GAError) {
        let counts = try sumCounts(tiles: tiles, body)
        rounded += counts.0
        flushed += counts.1
    }
}
