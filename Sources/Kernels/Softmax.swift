/// The softmax of the `n` terms `scale * x`, the largest taken out first; returns the logarithm of the sum of
/// their exponentials. A NaN among them makes all of it NaN. Memory up to `room` may be overwritten.
@inline(always)
func softmaxRow(
    _ out: UnsafeMutablePointer<Float>, _ x: UnsafePointer<Float>, _ n: Int, room: Int, scale: Float
) -> Float {
    @inline(always)
    func term(_ lanes: Lanes) -> Vector { load(x, lanes) * scale }
    let largest = largestOf(n, room: room, term)
    @inline(always)
    func power(_ lanes: Lanes) -> Vector {
        let power = exponential(term(lanes) - largest)
        store(power, out, lanes)
        return power
    }
    let sum = sumOf(n, room: room, power)
    let factor = 1 / sum
    @inline(always)
    func divide(_ lanes: Lanes) { store(load(out, lanes) * factor, out, lanes) }
    forEachLanes(to: n, room: room, divide)
    return Float(Double(largest) + logarithm(sum))
}

/// `exp(x - max) / sum` for every row.
func softmax(_ out: UnsafeMutablePointer<Float>, _ x: UnsafePointer<Float>, _ rows: Int64, _ cols: Int64) {
    let cols = Int(cols)
    for row in 0..<Int(rows) {
        _ = softmaxRow(out + row &* cols, x + row &* cols, cols, room: cols, scale: 1)
    }
}

/// `dx (+)= y * (dy - sum(dy * y))` for every row.
func softmaxGradient(
    _ dx: UnsafeMutablePointer<Float>, _ dy: UnsafePointer<Float>, _ y: UnsafePointer<Float>, _ rows: Int64,
    _ cols: Int64, _ accumulate: Int32
) {
    let cols = Int(cols)
    for row in 0..<Int(rows) {
        let (dx, dy, y) = (dx + row &* cols, dy + row &* cols, y + row &* cols)
        @inline(always)
        func factors(_ lanes: Lanes) -> (Vector, Vector) { (load(dy, lanes), load(y, lanes)) }
        let delta = dotProduct(cols, factors)
        @inline(always)
        func addGradient(_ lanes: Lanes) {
            emitProduct(load(y, lanes), load(dy, lanes) - delta, dx, lanes, accumulate: accumulate != 0)
        }
        forEachLanes(to: cols, addGradient)
    }
}

/// The logarithm of the sum over a row of `exp(x)` in two parts: the largest x, and what the others add to it.
func logSumExp(
    _ maximum: UnsafeMutablePointer<Float>, _ logSum: UnsafeMutablePointer<Float>, _ x: UnsafePointer<Float>,
    _ rows: Int64, _ cols: Int64
) {
    let cols = Int(cols)
    for row in 0..<Int(rows) {
        let x = x + row &* cols
        @inline(always)
        func element(_ lanes: Lanes) -> Vector { load(x, lanes) }
        let largest = largestOf(cols, element)
        @inline(always)
        func power(_ lanes: Lanes) -> Vector { exponential(load(x, lanes) - largest) }
        maximum[row] = largest
        logSum[row] = Float(logarithm(sumOf(cols, power)))
    }
}

/// `dx[r][c] (+)= scale * (exp(x[r][c] - maximum[r] - logSum[r]) - (c == targets[r]))`; a row with a negative
/// target has no gradient.
func crossEntropyGradient(
    _ dx: UnsafeMutablePointer<Float>, _ x: UnsafePointer<Float>, _ maximum: UnsafePointer<Float>,
    _ logSum: UnsafePointer<Float>, _ targets: UnsafePointer<Int64>, _ scale: Float, _ rows: Int64, _ cols: Int64,
    _ accumulate: Int32
) {
    let cols = Int(cols)
    let factor = Vector(repeating: scale)
    let accumulate = accumulate != 0
    for row in 0..<Int(rows) {
        let (x, dx) = (x + row &* cols, dx + row &* cols)
        let target = Int(targets[row])
        let largest = maximum[row]
        let logSum = logSum[row]
        guard target >= 0 else {
            if !accumulate { fill(dx, 0, Int64(cols)) }
            continue
        }
        let before = Vector(repeating: accumulate ? dx[target] : 0)
        // Read before the loop writes, as dx may be x.
        let probability = exponential(Vector(repeating: (x[target] - largest) - logSum))
        @inline(always)
        func addProbability(_ lanes: Lanes) {
            emitProduct(
                exponential((load(x, lanes) - largest) - logSum), factor, dx, lanes, accumulate: accumulate)
        }
        forEachLanes(to: cols, addProbability)
        dx[target] = multiplyAdd(probability - 1, factor, before)[0]
    }
}
