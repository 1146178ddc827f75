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
    try products(0..<leftOffsets.count, Array(0..<leftOffsets.count), MatrixProduct(m: m, n: n, k: k)) { i in
        (
            Matrix(out.floats + i * m * n, row: n), Matrix(left.floats + leftOffsets[i], row: k),
            Matrix(right.floats + rightOffsets[i], row: n)
        )
    }
    // Each one's gradient is made from the other.
    let (readLeft, readRight) = (b.requiresGrad ? left : nil, a.requiresGrad ? right : nil)
    let operands = [readLeft, readRight].compactMap { $0 }
    // The leading axis is that of the samples: of the products or, where there is only one, of the rows of a.
    let samples = batch.first ?? m
    let ofSample = samples == 0 || batch.isEmpty ? 1 : leftOffsets.count / samples
    /// Whether samples are added up in the gradient of an operand.
    func meetsAll(_ operand: Tensor) -> Bool { operand.rank - 2 < batch.count || operand.shape[0] == 1 }
    let (leftMeetsAll, rightMeetsAll) = (!batch.isEmpty && meetsAll(a), batch.isEmpty || meetsAll(b))
    return out.recorded("matmul", from: [a, b], reading: operands) { dy, gradients throws(GAError) in
        if let right = readRight {
            try gradients.add(to: 0, samples: leftMeetsAll ? samples : 1) { (da, accumulate, some) throws(GAError) in
                let range = leftMeetsAll ? some.lowerBound * ofSample..<some.upperBound * ofSample : leftOffsets.indices
                try products(range, leftOffsets, MatrixProduct(m: m, n: k, k: n, accumulate: accumulate)) { i in
                    (
                        Matrix(da + leftOffsets[i], row: k), Matrix(dy.floats + i * m * n, row: n),
                        Matrix(right.floats + rightOffsets[i], row: n).transposed
                    )
                }
            }
        }
        if let left = readLeft {
            try gradients.add(to: 1, samples: rightMeetsAll ? samples : 1) { (db, accumulate, some) throws(GAError) in
                let rows = batch.isEmpty ? some : 0..<m
                let range =
                    rightMeetsAll && !batch.isEmpty
                    ? some.lowerBound * ofSample..<some.upperBound * ofSample : rightOffsets.indices
                try products(range, rightOffsets, MatrixProduct(m: k, n: n, k: rows.count, accumulate: accumulate)) {
                    i in
                    (
                        Matrix(db + rightOffsets[i], row: n),
                        Matrix(left.floats + leftOffsets[i], row: k).at(rows.lowerBound, 0).transposed,
                        Matrix(dy.floats + i * m * n, row: n).at(rows.lowerBound, 0)
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

/// Computes the products of a range, all of one size, `matrices(i)` with their output first, whose outputs lie at `offsets`:
/// those that share an output one after another in batch order, which is sample order.
private func products(
    _ range: Range<Int>, _ offsets: [Int], _ product: MatrixProduct, _ matrices: (Int) -> (Matrix, Matrix, Matrix)
) throws(GAError) {
    var sharing: [Int: [Int]] = [:]
    for i in range { sharing[offsets[i], default: []].append(i) }
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
