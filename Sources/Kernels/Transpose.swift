/// Transposes a block of 16 x 16 in registers: interleaving its upper and lower half turns the place of an
/// element, row and column written one after the other in binary, by one bit, and four turns swap them.
@inline(always)
private func transposeBlock(
    _ out: UnsafeMutablePointer<Float>, _ ldout: Int, _ x: UnsafePointer<Float>, _ ldx: Int
) {
    var rows = zeroRegisters()
    for row in 0..<16 { rows[unchecked: row] = load(x + row &* ldx, Lanes(first: 0)) }
    for _ in 0..<4 {
        var turned = zeroRegisters()
        for row in 0..<8 {
            var pair = SIMD32<Float>.zero
            pair.evenHalf = rows[unchecked: row]
            pair.oddHalf = rows[unchecked: row &+ 8]
            turned[unchecked: 2 &* row] = pair.lowHalf
            turned[unchecked: 2 &* row &+ 1] = pair.highHalf
        }
        rows = turned
    }
    for row in 0..<16 { store(rows[unchecked: row], out + row &* ldout, Lanes(first: 0)) }
}

/// `out[c][r] = x[r][c]`.
func transpose(
    _ out: UnsafeMutablePointer<Float>, _ ldout: Int64, _ x: UnsafePointer<Float>, _ ldx: Int64,
    _ rows: Int64, _ cols: Int64
) {
    let (ldout, ldx, rows, cols) = (Int(ldout), Int(ldx), Int(rows), Int(cols))
    var row = 0
    while row < rows {
        var col = 0
        while col < cols {
            let (block, target) = (x + row &* ldx + col, out + col &* ldout + row)
            if row &+ 16 <= rows && col &+ 16 <= cols {
                transposeBlock(target, ldout, block, ldx)
            } else {
                for r in 0..<min(16, rows &- row) {
                    for c in 0..<min(16, cols &- col) { target[c &* ldout &+ r] = block[r &* ldx &+ c] }
                }
            }
            col &+= 16
        }
        row &+= 16
    }
}
