/// `out = (x - mean) * rstd * weight + bias` for every row, `rstd = 1 / sqrt(variance + eps)` with the biased
/// variance, taken about the mean in a second pass. `mean` and `rstd` are kept for the gradients.
func layerNorm(
    _ out: UnsafeMutablePointer<Float>, _ mean: UnsafeMutablePointer<Float>,
    _ rstd: UnsafeMutablePointer<Float>, _ x: UnsafePointer<Float>, _ weight: UnsafePointer<Float>?,
    _ bias: UnsafePointer<Float>?, _ rows: Int64, _ cols: Int64, _ eps: Float
) {
    let cols = Int(cols)
    for row in 0..<Int(rows) {
        let (x, out) = (x + row &* cols, out + row &* cols)
        @inline(always)
        func element(_ lanes: Lanes) -> Vector { load(x, lanes) }
        let rowMean = sumOf(cols, element) / Float(cols)
        @inline(always)
        func centered(_ lanes: Lanes) -> Vector { load(x, lanes) - rowMean }
        @inline(always)
        func deviations(_ lanes: Lanes) -> (Vector, Vector) { (centered(lanes), centered(lanes)) }
        let variance = dotProduct(cols, deviations) / Float(cols)
        let rowRstd = 1 / (variance + eps).squareRoot()
        mean[row] = rowMean
        rstd[row] = rowRstd
        @inline(always)
        func normalize(_ lanes: Lanes) {
            var y = centered(lanes) * rowRstd
            if let weight { y *= load(weight, lanes) }
            if let bias { y += load(bias, lanes) }
            store(y, out, lanes)
        }
        forEachLanes(to: cols, normalize)
    }
}

/// The gradient of x: with `g = dy * weight` and `h = (x - mean) * rstd`,
/// `dx (+)= rstd * (g - mean(g) - h * mean(g * h))` for every row.
func layerNormGradient(
    _ dx: UnsafeMutablePointer<Float>, _ dy: UnsafePointer<Float>, _ x: UnsafePointer<Float>,
    _ mean: UnsafePointer<Float>, _ rstd: UnsafePointer<Float>, _ weight: UnsafePointer<Float>?,
    _ rows: Int64, _ cols: Int64, _ accumulate: Int32
) {
    let cols = Int(cols)
    for row in 0..<Int(rows) {
        let (dx, dy, x) = (dx + row &* cols, dy + row &* cols, x + row &* cols)
        let (rowMean, rowRstd) = (mean[row], rstd[row])
        @inline(always)
        func normalized(_ lanes: Lanes) -> Vector { (load(x, lanes) - rowMean) * rowRstd }
        @inline(always)
        func weighted(_ lanes: Lanes) -> Vector {
            guard let weight else { return load(dy, lanes) }
            return load(dy, lanes) * load(weight, lanes)
        }
        @inline(always)
        func factors(_ lanes: Lanes) -> (Vector, Vector) { (weighted(lanes), normalized(lanes)) }
        let meanOfGradient = sumOf(cols, weighted) / Float(cols)
        let meanOfProduct = dotProduct(cols, factors) / Float(cols)
        let slope = Vector(repeating: -meanOfProduct)
        @inline(always)
        func addGradient(_ lanes: Lanes) {
            let centered = multiplyAdd(normalized(lanes), slope, weighted(lanes) - meanOfGradient)
            emit(centered * rowRstd, dx, lanes, accumulate: accumulate != 0)
        }
        forEachLanes(to: cols, addGradient)
    }
}

/// `dweight[c] (+)=` the sum over r of `dy[r][c] * (x[r][c] - mean[r]) * rstd[r]`, one chain per column in row
/// order.
func layerNormWeightGradient(
    _ dweight: UnsafeMutablePointer<Float>, _ dy: UnsafePointer<Float>, _ x: UnsafePointer<Float>,
    _ mean: UnsafePointer<Float>, _ rstd: UnsafePointer<Float>, _ rows: Int64, _ cols: Int64,
    _ firstCol: Int64, _ lastCol: Int64, _ accumulate: Int32
) {
    let cols = Int(cols)
    @inline(always)
    func add(_ sum: inout Vector, _ row: Int, _ lanes: Lanes) {
        let normalized = (load(x + row &* cols, lanes) - mean[row]) * rstd[row]
        sum = multiplyAdd(load(dy + row &* cols, lanes), normalized, sum)
    }
    columnChains(
        dweight, from: Int(firstCol), to: Int(lastCol), rows: Int(rows), accumulate: accumulate != 0, add)
}
