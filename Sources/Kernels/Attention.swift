/// The number of columns that row `row` of a block may see.
@inline(always)
private func visibleColumns(_ row: Int, _ firstRow: Int64, _ cols: Int64) -> Int {
    Int(min(cols, firstRow &+ Int64(row) &+ 1))
}

/// Turns rows of raw scores in place into `exp(scale * s - logSumExp)` for the columns a row may see and 0 for
/// those after them.
func attentionSoftmax(
    _ s: UnsafeMutablePointer<Float>, _ logSumExp: UnsafeMutablePointer<Float>, _ rows: Int64, _ cols: Int64,
    _ ld: Int64, _ firstRow: Int64, _ scale: Float
) {
    for row in 0..<Int(rows) {
        let s = s + row &* Int(ld)
        let visible = visibleColumns(row, firstRow, cols)
        logSumExp[row] = softmaxRow(s, s, visible, room: Int(cols), scale: scale)
        fill(s + visible, 0, cols &- Int64(visible))
    }
}

/// Turns raw scores in place into probabilities, and the gradients of the probabilities into those of the raw
/// scores, `scale * p * (dp - delta)`; both are 0 in the columns that a row may not see.
func attentionSoftmaxGradient(
    _ s: UnsafeMutablePointer<Float>, _ dp: UnsafeMutablePointer<Float>, _ logSumExp: UnsafePointer<Float>,
    _ delta: UnsafePointer<Float>, _ rows: Int64, _ cols: Int64, _ ld: Int64, _ firstRow: Int64,
    _ scale: Float
) {
    for row in 0..<Int(rows) {
        let (s, dp) = (s + row &* Int(ld), dp + row &* Int(ld))
        let (rowLogSumExp, rowDelta) = (logSumExp[row], delta[row])
        let visible = visibleColumns(row, firstRow, cols)
        @inline(always)
        func differentiate(_ lanes: Lanes) {
            let probability = exponential(load(s, lanes) * scale - rowLogSumExp)
            store(probability, s, lanes)
            store(probability * (load(dp, lanes) - rowDelta) * scale, dp, lanes)
        }
        forEachLanes(to: visible, room: Int(cols), differentiate)
        fill(s + visible, 0, cols &- Int64(visible))
        fill(dp + visible, 0, cols &- Int64(visible))
    }
}
