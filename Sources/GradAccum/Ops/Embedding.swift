import CShims

extension Tensor {
    /// Rows of this table [rows, c] picked by `indices` [...]: [..., c]. Errors: `index`.
    public func embedding(_ indices: Tensor) throws(GAError) -> Tensor {
        try require(.float32, "embedding", "weight")
        guard rank == 2 else {
            throw GAError(.shape, "embedding: weight has shape \(shape), and [rows, channels] is needed")
        }
        let columns = shape[1]
        let picked = try indices.indices(below: shape[0], "embedding", "indices")
        let index = picked.address.assumingMemoryBound(to: Int64.self)
        let out = try Tensor(uninitialized: indices.shape + [columns], for: "embedding")
        let table = try packedData()
        let rows = picked.elementCount
        try elementwiseRows(rows) { row in
            (out.floats + row * columns).update(from: table.floats + Int(index[row]) * columns, count: columns)
        }
        let firstRow = RowGradients.firstRow(of: self)
        return out.recorded("embedding", from: [self], reading: []) { dy, gradients throws(GAError) in
            gradients.show(dy, for: 0)
            let index = UnsafeBufferPointer(start: picked.address.assumingMemoryBound(to: Int64.self), count: rows)
            if let firstRow, let sums = try gradients.rows(of: 0) {
                try sums.add(dy.floats, to: index, after: firstRow)
                return
            }
            if let firstRow, let sum = try gradients.bf16Sum(of: 0) {
                try sum.add(dy.floats, to: index, of: columns, at: firstRow * columns)
                return
            }
            // Shared out by columns, so that each row of the table receives its samples in order.
            try gradients.add(to: 0, samples: rows, zeroed: true) { (dw, _, rows) throws(GAError) in
                try Runtime.parallel(count: columns, grain: 128) { start, count in
                    for row in rows {
                        Runtime.kernels.add_scaled(
                            dw + Int(index[row]) * columns + start, dy.floats + row * columns + start, SHIMS_F32, 1,
                            Int64(count), 1)
                    }
                }
            }
        }.addingByRows(to: firstRow == nil ? [] : [0])
    }
}
