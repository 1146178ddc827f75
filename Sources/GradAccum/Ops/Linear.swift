import CShims

extension Tensor {
    /// This tensor [..., in] times the transpose of `weight` [out, in], plus `bias` [out]: [..., out].
    public func linear(_ weight: Tensor, _ bias: Tensor? = nil) throws(GAError) -> Tensor {
        let layer = try LinearLayer(self, weight, "linear")
        try bias?.require(.float32, "linear", "bias")
        try bias?.require(shape: [layer.n], "linear", "bias")
        let out = try Tensor(uninitialized: try layout.packed(lastSize: layer.n, "linear"))
        let x = try packedData()
        let w = try weight.packedData()
        let b = try bias?.packedData()
        try layer.forward(out.floats, x.floats, w.floats, b?.floats)
        func backward(_ dy: Tensor, _ gradients: Gradients) throws(GAError) {
            try gradients.add(to: 0) { (dx, accumulate) throws(GAError) in
                try layer.inputGradient(dx, dy.floats, w.floats, accumulate)
            }
            try gradients.add(to: 1) { (dw, accumulate) throws(GAError) in
                try layer.weightGradient(dw, dy.floats, x.floats, accumulate)
            }
            guard bias != nil else { return }
            try gradients.add(to: 2) { (db, accumulate) throws(GAError) in
                try sumRows(db, dy.floats, rows: layer.samples * layer.rows, columns: layer.n, accumulate)
            }
        }
        return out.recorded("linear", from: bias.map { [self, weight, $0] } ?? [self, weight], backward)
    }
}

/// The products of a linear layer: y [samples, rows, n] = x [samples, rows, k] w^T, with w [n, k].
///
/// Where a sample has many rows, one product per sample: no product spans two samples, so that none depends on how many
/// are computed together, and the weight gradient is a chain of products in sample order. Where it has few, chains of
/// single multiply-adds over all rows.
struct LinearLayer {
    let samples: Int
    let rows: Int
    let n: Int
    let k: Int

    /// Errors: `dtype` and `shape` of x [..., in] and weight [out, in].
    init(_ x: Tensor, _ weight: Tensor, _ operation: StaticString) throws(GAError) {
        try x.require(.float32, operation, "x")
        try weight.require(.float32, operation, "weight")
        try x.require(rank: 1, operation, "x")
        k = x.shape[x.rank - 1]
        guard weight.rank == 2 && weight.shape[1] == k else {
            throw GAError(
                .shape, "\(operation): weight has shape \(weight.shape), and [out, \(k)] is needed for x \(x.shape)")
        }
        n = weight.shape[0]
        samples = x.rank < 2 ? 1 : x.shape[0]
        rows = x.rank < 3 ? 1 : x.shape[1..<(x.rank - 1)].reduce(1, *)
    }

    private var hasFewRows: Bool { rows < MatrixProduct.fewRows }
    private var xSample: Int { rows * k }
    private var ySample: Int { rows * n }

    func forward(
        _ y: UnsafeMutablePointer<Float>, _ x: UnsafeMutablePointer<Float>, _ w: UnsafeMutablePointer<Float>,
        _ bias: UnsafeMutablePointer<Float>?
    ) throws(GAError) {
        guard samples * rows * n > 0 else { return }
        let weight = Matrix(w, row: k).transposed
        if hasFewRows {
            let count = samples * rows
            if let bias {
                try elementwiseRows(count) { row in
                    Runtime.kernels.add_scaled(y + row * n, bias, SHIMS_F32, 1, Int64(n), 0)
                }
            }
            try MatrixProduct.chains(
                Matrix(y, row: n), Matrix(x, row: k), weight, m: count, n: n, k: k, accumulate: bias == nil ? 0 : 1)
            return
        }
        try MatrixProduct.forEachTile(of: samples, rows: rows, columns: n) {
            (sample, row, rowCount, column, columnCount) throws(GAError) in
            try MatrixProduct.gemm(
                Matrix(y + sample * ySample, row: n).at(row, column), Matrix(x + sample * xSample, row: k).at(row, 0),
                weight.at(0, column), m: rowCount, n: columnCount, k: k, accumulate: 0, bias: bias.map { $0 + column })
        }
    }

    func inputGradient(
        _ dx: UnsafeMutablePointer<Float>, _ dy: UnsafeMutablePointer<Float>, _ w: UnsafeMutablePointer<Float>,
        _ accumulate: Int32
    ) throws(GAError) {
        let weight = Matrix(w, row: k)
        if hasFewRows {
            try MatrixProduct.chains(
                Matrix(dx, row: k), Matrix(dy, row: n), weight, m: samples * rows, n: k, k: n, accumulate: accumulate)
            return
        }
        try MatrixProduct.forEachTile(of: samples, rows: rows, columns: k) {
            (sample, row, rowCount, column, columnCount) throws(GAError) in
            try MatrixProduct.gemm(
                Matrix(dx + sample * xSample, row: k).at(row, column), Matrix(dy + sample * ySample, row: n).at(row, 0),
                weight.at(0, column), m: rowCount, n: columnCount, k: n, accumulate: accumulate)
        }
    }

    func weightGradient(
        _ dw: UnsafeMutablePointer<Float>, _ dy: UnsafeMutablePointer<Float>, _ x: UnsafeMutablePointer<Float>,
        _ accumulate: Int32
    ) throws(GAError) {
        if hasFewRows {
            try MatrixProduct.chains(
                Matrix(dw, row: k), Matrix(dy, row: n).transposed, Matrix(x, row: k), m: n, n: k, k: samples * rows,
                accumulate: accumulate)
            return
        }
        guard samples > 0 else {
            if accumulate == 0 { try fillZeros(dw, n * k) }
            return
        }
        let outputs = Blocks(n, largest: 128)
        let inputs = Blocks(k, largest: 768)
        try Runtime.parallel(tiles: outputs.count * inputs.count) { tile throws(GAError) in
            let i = tile / inputs.count
            let j = tile % inputs.count
            for sample in 0..<samples {
                try MatrixProduct.gemm(
                    Matrix(dw, row: k).at(outputs.start(i), inputs.start(j)),
                    Matrix(dy + sample * ySample, row: n).transposed.at(outputs.start(i), 0),
                    Matrix(x + sample * xSample, row: k).at(0, inputs.start(j)), m: outputs.count(i),
                    n: inputs.count(j), k: rows, accumulate: sample == 0 ? accumulate : 1)
            }
        }
    }
}

/// Runs `body(row)` for every row, some rows to a tile.
func elementwiseRows(_ rows: Int, _ body: (Int) -> Void) throws(GAError) {
    try Runtime.parallel(count: rows, grain: 32) { first, count in
        for row in first..<(first + count) { body(row) }
    }
}

/// out [columns] (+)= the rows of x [rows, columns] one after another: one chain per column.
func sumRows(
    _ out: UnsafeMutablePointer<Float>, _ x: UnsafePointer<Float>, rows: Int, columns: Int, _ accumulate: Int32
) throws(GAError) {
    try Runtime.parallel(count: columns, grain: 64) { start, count in
        Runtime.kernels.sum_rows(out + start, x + start, Int64(rows), Int64(count), Int64(columns), accumulate)
    }
}
