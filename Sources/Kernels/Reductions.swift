import CShims

/// The sum of what `term` has for `n` elements: vectors in four interleaved chains, then by halves.
@inline(always)
func sumOf(_ n: Int, room: Int = 0, _ term: (Lanes) -> Vector) -> Float {
    @inline(always)
    func add(_ sum: inout Vector, _ lanes: Lanes) { sum += padded(term(lanes), lanes) }
    return sumOfLanes(accumulateLanes(.zero, n, room: room, add, join: { $0 + $1 }))
}

/// The sum of the products of what `factors` has for `n` elements, in the order of a sum.
@inline(always)
func dotProduct(_ n: Int, _ factors: (Lanes) -> (Vector, Vector)) -> Float {
    @inline(always)
    func add(_ sum: inout Vector, _ lanes: Lanes) {
        let (a, b) = factors(lanes)
        sum = multiplyAdd(padded(a, lanes), padded(b, lanes), sum)
    }
    return sumOfLanes(accumulateLanes(.zero, n, room: 0, add, join: { $0 + $1 }))
}

/// The sum of the squares of what `term` has for `n` elements, in double precision.
@inline(always)
private func sumOfSquares(_ n: Int64, _ term: (Lanes) -> Vector) -> Double {
    @inline(always)
    func add(_ sum: inout DoubleVector, _ lanes: Lanes) { addSquares(padded(term(lanes), lanes), to: &sum) }
    let zero: DoubleVector = (.zero, .zero)
    return sumOfLanes(
        accumulateLanes(zero, Int(n), room: 0, add, join: { ($0.low + $1.low, $0.high + $1.high) }))
}

/// The largest magnitude of x, in any storage format: NaN where an element is, whose bits are larger than those of infinity.
func largestMagnitude(_ x: UnsafeRawPointer, _ format: shims_format, _ n: Int64) -> Float {
    let single = x.assumingMemoryBound(to: Float.self)
    let half = x.assumingMemoryBound(to: UInt16.self)
    @inline(always)
    func larger(_ a: Bits, _ b: Bits) -> Bits { choose(a, b, where: b .> a) }
    @inline(always)
    func keepSingle(_ largest: inout Bits, _ lanes: Lanes) {
        largest = larger(largest, unsafeBitCast(load(single, lanes), to: Bits.self) & 0x7fff_ffff)
    }
    @inline(always)
    func keepHalf(_ largest: inout Bits, _ lanes: Lanes) {
        largest = larger(largest, widened(load(half, lanes)) & 0x7fff)
    }
    let isSingle = format.rawValue == SHIMS_F32.rawValue
    let lanes =
        isSingle
        ? accumulateLanes(Bits.zero, Int(n), room: 0, keepSingle, join: larger)
        : accumulateLanes(Bits.zero, Int(n), room: 0, keepHalf, join: larger)
    var largest: UInt32 = 0
    for lane in 0..<16 where lanes[lane] > largest { largest = lanes[lane] }
    if isSingle { return Float(bitPattern: largest) }
    let bits = HalfVector(repeating: UInt16(truncatingIfNeeded: largest))
    return format.rawValue == SHIMS_BF16.rawValue ? fromBF16(bits)[0] : fromF16(bits)[0]
}

/// The largest of what `term` has for `n` elements, NaN left out; negative infinity if there is none.
@inline(always)
func largestOf(_ n: Int, room: Int = 0, _ term: (Lanes) -> Vector) -> Float {
    @inline(always)
    func keep(_ largest: inout Vector, _ lanes: Lanes) {
        largest = larger(largest, padded(term(lanes), lanes, with: -.infinity))
    }
    let lowest = Vector(repeating: -.infinity)
    return largest(accumulateLanes(lowest, n, room: room, keep, join: { larger($0, $1) }))
}

/// Rows that all columns add before the next: few enough that memory is read in as many long streams.
private let rowsAtATime = 8

/// Calls `body(first row, end, accumulate)` for rows at a time, of which the first begin at zero unless `accumulate`.
@inline(always)
private func forEachRows(_ rows: Int, accumulate: Bool, _ body: (Int, Int, Bool) -> Void) {
    var first = 0
    repeat {
        let end = min(first &+ rowsAtATime, rows)
        body(first, end, accumulate || first > 0)
        first = end
    } while first < rows
}

/// One chain per column in row order, `step` adding what a row has for some columns; 64 columns at a time are
/// held in registers over some rows.
@inline(always)
func columnChains(
    _ out: UnsafeMutablePointer<Float>, from firstColumn: Int, to endColumn: Int, rows: Int,
    accumulate: Bool, _ step: (inout Vector, Int, Lanes) -> Void
) {
    @inline(always)
    func addRows(_ first: Int, _ end: Int, _ accumulate: Bool) {
        @inline(always)
        func start(_ lanes: Lanes) -> Vector { accumulate ? load(out, lanes) : .zero }
        var column = firstColumn
        while column &+ 64 <= endColumn {
            let lanes0 = Lanes(first: column)
            let lanes1 = Lanes(first: column &+ 16)
            let lanes2 = Lanes(first: column &+ 32)
            let lanes3 = Lanes(first: column &+ 48)
            var (sum0, sum1, sum2, sum3) = (start(lanes0), start(lanes1), start(lanes2), start(lanes3))
            for row in first..<end {
                step(&sum0, row, lanes0)
                step(&sum1, row, lanes1)
                step(&sum2, row, lanes2)
                step(&sum3, row, lanes3)
            }
            store(sum0, out, lanes0)
            store(sum1, out, lanes1)
            store(sum2, out, lanes2)
            store(sum3, out, lanes3)
            column &+= 64
        }
        @inline(always)
        func chain(_ lanes: Lanes) {
            var sum = start(lanes)
            for row in first..<end { step(&sum, row, lanes) }
            store(sum, out, lanes)
        }
        forEachLanes(from: column, to: endColumn, chain)
    }
    forEachRows(rows, accumulate: accumulate, addRows)
}

/// `out[c] (+)= x[0][c] + x[1][c] + ...`, one chain per column in row order.
func sumRows(
    _ out: UnsafeMutablePointer<Float>, _ x: UnsafePointer<Float>, _ rows: Int64, _ cols: Int64,
    _ ldx: Int64, _ accumulate: Int32
) {
    @inline(always)
    func add(_ sum: inout Vector, _ row: Int, _ lanes: Lanes) { sum += load(x + row &* Int(ldx), lanes) }
    columnChains(out, from: 0, to: Int(cols), rows: Int(rows), accumulate: accumulate != 0, add)
}

/// The same, and `rounded[r][c]` becomes the nearest number of a half format to `x[r][c]`, with `ldx` between rows too.
func sumAndRoundRows(
    _ out: UnsafeMutablePointer<Float>, _ rounded: UnsafeMutablePointer<UInt16>, _ format: shims_format,
    _ x: UnsafePointer<Float>, _ rows: Int64, _ cols: Int64, _ ldx: Int64, _ accumulate: Int32
) {
    let (step, whole) = (Int(ldx), Int(cols) & ~31)
    @inline(always)
    func addRows(_ start: Int, _ end: Int, _ accumulate: Bool) {
        for column in stride(from: 0, to: whole, by: 32) {
            let (first, second) = (Lanes(first: column), Lanes(first: column &+ 16))
            var sums = accumulate ? (load(out, first), load(out, second)) : (Vector.zero, Vector.zero)
            for row in start..<end {
                let (low, high) = (load(x + row &* step, first), load(x + row &* step, second))
                sums.0 += low
                sums.1 += high
                storeRounded(low, high, rounded + (row &* step &+ column), format)
            }
            store(sums.0, out, first)
            store(sums.1, out, second)
        }
    }
    forEachRows(Int(rows), accumulate: accumulate != 0, addRows)
    guard whole < Int(cols) else { return }
    sumRows(out + whole, x + whole, rows, cols &- Int64(whole), ldx, accumulate)
    for row in 0..<Int(rows) {
        let start = row &* step &+ whole
        fromF32(rounded + start, format, x + start, cols &- Int64(whole))
    }
}

/// The sum of `n` numbers in an order that depends on `n` alone.
func sum(_ x: UnsafePointer<Float>, _ n: Int64) -> Float {
    @inline(always)
    func term(_ lanes: Lanes) -> Vector { load(x, lanes) }
    return sumOf(Int(n), term)
}

/// The sum of squares in double precision, where no square of a float overflows.
func sumOfSquares(_ x: UnsafePointer<Float>, _ n: Int64) -> Double {
    @inline(always)
    func term(_ lanes: Lanes) -> Vector { load(x, lanes) }
    return sumOfSquares(n, term)
}

/// `x[i] += y[i]`; returns the sum of squares of the results.
func foldSumOfSquares(_ x: UnsafeMutablePointer<Float>, _ y: UnsafePointer<Float>, _ n: Int64) -> Double {
    @inline(always)
    func fold(_ lanes: Lanes) -> Vector {
        let folded = load(x, lanes) + load(y, lanes)
        store(folded, x, lanes)
        return folded
    }
    return sumOfSquares(n, fold)
}

/// `x[i]` becomes `scale * x[i]`, moved into `-limit ... limit`. `squares` gets two sums of squares in double precision:
/// of what it was before that move, and after.
func clipValues(
    _ x: UnsafeMutablePointer<Float>, _ scale: Float, _ limit: Float, _ squares: UnsafeMutablePointer<Double>,
    _ n: Int64
) {
    let (low, high) = (Vector(repeating: -limit), Vector(repeating: limit))
    @inline(always)
    func clip(_ sums: inout (before: DoubleVector, after: DoubleVector), _ lanes: Lanes) {
        let scaled = load(x, lanes) * scale
        let clipped = larger(smaller(scaled, high), low)
        store(clipped, x, lanes)
        addSquares(padded(scaled, lanes), to: &sums.before)
        addSquares(padded(clipped, lanes), to: &sums.after)
    }
    @inline(always)
    func join(_ a: DoubleVector, _ b: DoubleVector) -> DoubleVector { (a.low + b.low, a.high + b.high) }
    let zero: DoubleVector = (.zero, .zero)
    let sums = accumulateLanes(
        (before: zero, after: zero), Int(n), room: 0, clip,
        join: { (before: join($0.before, $1.before), after: join($0.after, $1.after)) })
    squares[0] = sumOfLanes(sums.before)
    squares[1] = sumOfLanes(sums.after)
}

/// The sum of `(a[i] - b[i])^2`, the differences in single and the sum in double precision.
func squaredError(_ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, _ n: Int64) -> Double {
    @inline(always)
    func difference(_ lanes: Lanes) -> Vector { load(a, lanes) - load(b, lanes) }
    return sumOfSquares(n, difference)
}

/// `out[r]` is the dot product of row r of `a` and row r of `b`.
func dotRows(
    _ out: UnsafeMutablePointer<Float>, _ a: UnsafePointer<Float>, _ lda: Int64, _ b: UnsafePointer<Float>,
    _ ldb: Int64, _ rows: Int64, _ cols: Int64
) {
    for row in 0..<Int(rows) {
        let (a, b) = (a + row &* Int(lda), b + row &* Int(ldb))
        @inline(always)
        func factors(_ lanes: Lanes) -> (Vector, Vector) { (load(a, lanes), load(b, lanes)) }
        out[row] = dotProduct(Int(cols), factors)
    }
}
