/// a [..., m, k] times b [..., k, n] gives [..., m, n]; leading axes are broadcast.
public func matmul(_ a: Tensor, _ b: Tensor) throws(GAError) -> Tensor {
    try a.require(.float32, "matmul", "a")
    try b.require(.float32, "matmul", "b")
    try a.require(rank: 2, "matmul", "a")
    try b.require(rank: 2, "matmul", "b")
    let (m, k, n) = (a.shape[a.rank - 2], a.shape[a.rank - 1], b.shape[b.rank - 1])
    guard b.shape[b.rank - 2] == k else {
        throw GAError(.shape, "matmul: a \(a.shape) has \(k) columns, but b \(b.shape) has \(b.shape[b.rank - 2]) rows")
    }
    let batch = try Shape.broadcast(Array(a.shape.dropLast(2)), Array(b.shape.dropLast(2)), "matmul")
    let out = try Tensor(uninitialized: batch + [m, n], for: "matmul")
    let left = try a.packedData()
    let right = try b.packedData()
    guard out.elementCount > 0 else { return out.recorded("matmul", from: [a, b]) { _, _ in } }
    let leftOffsets = batchOffsets(a, batch)
    let rightOffsets = batchOffsets(b, batch)
    // Without a batch axis the rows of a are samples, and a sample is one row.
    let rowsAreSamples = batch.isEmpty

    try products(leftOffsets.count, rowsAreSamples, m: m, n: n) { (i, tile) throws(GAError) in
        try tile.run(
            Matrix(out.floats + i * m * n, row: n), Matrix(left.floats + leftOffsets[i], row: k),
            Matrix(right.floats + rightOffsets[i], row: n), k: k, accumulate: 0)
    }
    return out.recorded("matmul", from: [a, b]) { dy, gradients throws(GAError) in
        try gradients.add(to: 0) { (da, accumulate) throws(GAError) in
            try sharedProducts(leftOffsets, rowsAreSamples, m: m, n: k) { (i, first, tile) throws(GAError) in
                try tile.run(
                    Matrix(da + leftOffsets[i], row: k), Matrix(dy.floats + i * m * n, row: n),
                    Matrix(right.floats + rightOffsets[i], row: n).transposed, k: n, accumulate: first ? accumulate : 1)
            }
        }
        try gradients.add(to: 1) { (db, accumulate) throws(GAError) in
            try sharedProducts(rightOffsets, rowsAreSamples, m: k, n: n) { (i, first, tile) throws(GAError) in
                try tile.run(
                    Matrix(db + rightOffsets[i], row: n), Matrix(left.floats + leftOffsets[i], row: k).transposed,
                    Matrix(dy.floats + i * m * n, row: n), k: m, accumulate: first ? accumulate : 1)
            }
        }
    }
}

/// Where each matrix of the broadcast batch starts in an operand.
private func batchOffsets(_ operand: Tensor, _ batch: [Int]) -> [Int] {
    let own = Array(operand.shape.dropLast(2))
    let matrix = operand.shape[operand.rank - 2] * operand.shape[operand.rank - 1]
    let strides = Shape.broadcastStrides(own, to: batch)
    return (0..<batch.reduce(1, *)).map { index in
        var rest = index
        var offset = 0
        for axis in batch.indices.reversed() {
            offset += rest % batch[axis] * strides[axis]
            rest /= batch[axis]
        }
        return offset * matrix
    }
}

/// A piece of an output matrix [m, n].
private struct Tile {
    let byChains: Bool
    let row: Int
    let rowCount: Int
    let column: Int
    let columnCount: Int

    /// c (+)= a b in this piece; the matrices are whole.
    func run(_ c: Matrix, _ a: Matrix, _ b: Matrix, k: Int, accumulate: Int32) throws(GAError) {
        if byChains {
            try MatrixProduct.chains(c, a, b, m: rowCount, n: columnCount, k: k, accumulate: accumulate)
        } else {
            try MatrixProduct.gemm(
                c.at(row, column), a.at(row, 0), b.at(0, column), m: rowCount, n: columnCount, k: k,
                accumulate: accumulate)
        }
    }
}

/// Runs `body(matrix, tile)` for the tiles of `count` output matrices.
private func products(
    _ count: Int, _ byChains: Bool, m: Int, n: Int, _ body: (Int, Tile) throws(GAError) -> Void
) throws(GAError) {
    if byChains {
        for i in 0..<count {
            try body(i, Tile(byChains: true, row: 0, rowCount: m, column: 0, columnCount: n))
        }
        return
    }
    try MatrixProduct.forEachTile(of: count, rows: m, columns: n) {
        (i, row, rowCount, column, columnCount) throws(GAError) in
        try body(
            i, Tile(byChains: false, row: row, rowCount: rowCount, column: column, columnCount: columnCount))
    }
}

/// Runs `body(i, first, tile)` for products whose outputs lie at `offsets`: those that share an output one after
/// another in batch order, which is sample order.
private func sharedProducts(
    _ offsets: [Int], _ byChains: Bool, m: Int, n: Int,
    _ body: (Int, Bool, Tile) throws(GAError) -> Void
) throws(GAError) {
    var sharing: [Int: [Int]] = [:]
    for (i, offset) in offsets.enumerated() { sharing[offset, default: []].append(i) }
    let groups = sharing.keys.sorted().map { sharing[$0]! }
    try products(groups.count, byChains, m: m, n: n) { (group, tile) throws(GAError) in
        for (turn, i) in groups[group].enumerated() { try body(i, turn == 0, tile) }
    }
}
