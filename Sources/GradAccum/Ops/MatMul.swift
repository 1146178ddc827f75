/// a [..., m, k] times b [..., k, n] gives [..., m, n]; leading axes are broadcast.
public func matmul(_ a: Tensor, _ b: Tensor) throws(GAError) -> Tensor {
    guard a.dtype == .float32 && b.dtype == .float32 else {
        return try matmul(a.inFloat32("matmul", "a"), b.inFloat32("matmul", "b"))
    }
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
    guard out.elementCount > 0 else { return out.recorded("matmul", from: [a, b], reading: []) { _, _ in } }
    let leftOffsets = batchOffsets(a, batch)
    let rightOffsets = batchOffsets(b, batch)
    try products(Array(0..<leftOffsets.count), MatrixProduct(m: m, n: n, k: k)) { i in
        (
            Matrix(out.floats + i * m * n, row: n), Matrix(left.floats + leftOffsets[i], row: k),
            Matrix(right.floats + rightOffsets[i], row: n)
        )
    }
    // Each one's gradient is made from the other.
    let (readLeft, readRight) = (b.requiresGrad ? left : nil, a.requiresGrad ? right : nil)
    let operands = [readLeft, readRight].compactMap { $0 }
    return out.recorded("matmul", from: [a, b], reading: operands) { dy, gradients throws(GAError) in
        if let right = readRight {
            try gradients.add(to: 0) { (da, accumulate) throws(GAError) in
                try products(leftOffsets, MatrixProduct(m: m, n: k, k: n, accumulate: accumulate)) { i in
                    (
                        Matrix(da + leftOffsets[i], row: k), Matrix(dy.floats + i * m * n, row: n),
                        Matrix(right.floats + rightOffsets[i], row: n).transposed
                    )
                }
            }
        }
        if let left = readLeft {
            try gradients.add(to: 1) { (db, accumulate) throws(GAError) in
                try products(rightOffsets, MatrixProduct(m: k, n: n, k: m, accumulate: accumulate)) { i in
                    (
                        Matrix(db + rightOffsets[i], row: n), Matrix(left.floats + leftOffsets[i], row: k).transposed,
                        Matrix(dy.floats + i * m * n, row: n)
                    )
                }
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

/// Computes products of one size, `matrices(i)` with their output first, whose outputs lie at `offsets`: those that share
/// an output one after another in batch order, which is sample order.
private func products(
    _ offsets: [Int], _ product: MatrixProduct, _ matrices: (Int) -> (Matrix, Matrix, Matrix)
) throws(GAError) {
    var sharing: [Int: [Int]] = [:]
    for (i, offset) in offsets.enumerated() { sharing[offset, default: []].append(i) }
    let groups = sharing.keys.sorted().map { sharing[$0]! }
    var next = product
    next.accumulate = 1
    // Few outputs are each shared out among the threads, many are dealt out to them.
    guard groups.count >= Runtime.numThreads else {
        for group in groups {
            for (turn, i) in group.enumerated() {
                let (c, a, b) = matrices(i)
                try (turn == 0 ? product : next).run(c, a, b)
            }
        }
        return
    }
    try Runtime.parallel(tiles: groups.count, scratch: product.scratch()) { [next] tile, scratch in
        for (turn, i) in groups[tile].enumerated() {
            let (c, a, b) = matrices(i)
            (turn == 0 ? product : next).runAlone(c, a, b, scratch)
        }
    }
}
