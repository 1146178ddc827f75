import CShims

/// For each of `rows` rows of the gradient the sum of the squares of `scale * gradient`, and the same for each of `cols`
/// columns: a row by vectors and then by halves, a column as one chain.
func adafactorSums(
    _ rowSums: UnsafeMutablePointer<Float>, _ columnSums: UnsafeMutablePointer<Float>,
    _ gradient: UnsafePointer<Float>, _ scale: Float, _ rows: Int64, _ cols: Int64, _ ld: Int64
) {
    for row in 0..<Int(rows) {
        let gradient = gradient + row &* Int(ld)
        var sum = Vector.zero
        @inline(always)
        func add(_ lanes: Lanes) {
            let g = load(gradient, lanes) * scale
            sum = multiplyAdd(g, g, sum)
            store(row == 0 ? g * g : multiplyAdd(g, g, load(columnSums, lanes)), columnSums, lanes)
        }
        forEachLanes(to: Int(cols), add)
        rowSums[row] = sumOfLanes(sum)
    }
}

/// Moves each variance towards the mean that a sum makes, by the share `weight`; the sum becomes 1 over its root. With a
/// share of 1 it is that mean, and not what rounding beside a large old variance leaves of it.
func adafactorFactors(
    _ variance: UnsafeMutablePointer<Float>, _ sums: UnsafeMutablePointer<Float>, _ weight: Float,
    _ inverseCount: Float, _ n: Int64
) {
    let isWhole = weight == 1
    let weight = Vector(repeating: weight)
    @inline(always)
    func move(_ lanes: Lanes) {
        let (mean, old) = (load(sums, lanes) * inverseCount, load(variance, lanes))
        let moved = isWhole ? mean : multiplyAdd(weight, mean - old, old)
        store(moved, variance, lanes)
        store(1 / moved.squareRoot(), sums, lanes)
    }
    forEachLanes(to: Int(n), move)
}

/// The update of `cols` elements of a row: the scaled gradient over the root of its second moment, where that is not below
/// its least value. What has no moment, or one beyond float32, has the least value too.
@inline(always)
private func direction(_ gradient: Vector, _ rowFactor: Float, _ columnFactor: Vector, _ options: shims_adafactor)
    -> Vector
{
    gradient * options.gradient_scale * smaller(Vector(repeating: options.limit), columnFactor * rowFactor)
}

/// The sum of squares of the update of a block, in double precision.
func adafactorSquares(
    _ gradient: UnsafePointer<Float>, _ rowFactors: UnsafePointer<Float>, _ columnFactors: UnsafePointer<Float>,
    _ options: UnsafePointer<shims_adafactor>, _ rows: Int64, _ cols: Int64, _ ld: Int64
) -> Double {
    let options = options.pointee
    var sum: DoubleVector = (.zero, .zero)
    for row in 0..<Int(rows) {
        let gradient = gradient + row &* Int(ld)
        let factor = rowFactors[row] * options.row_scale
        @inline(always)
        func add(_ lanes: Lanes) {
            let update = direction(load(gradient, lanes), factor, load(columnFactors, lanes), options)
            addSquares(padded(update, lanes), to: &sum)
        }
        forEachLanes(to: Int(cols), add)
    }
    return sumOfLanes(sum)
}

/// The parameter, decayed first, loses `step_size` times the update.
func adafactorStep(
    _ parameter: UnsafeMutablePointer<Float>, _ gradient: UnsafePointer<Float>, _ rowFactors: UnsafePointer<Float>,
    _ columnFactors: UnsafePointer<Float>, _ options: UnsafePointer<shims_adafactor>, _ rows: Int64, _ cols: Int64,
    _ ld: Int64
) {
    let options = options.pointee
    let step = Vector(repeating: -options.step_size)
    for row in 0..<Int(rows) {
        let (parameter, gradient) = (parameter + row &* Int(ld), gradient + row &* Int(ld))
        let factor = rowFactors[row] * options.row_scale
        @inline(always)
        func update(_ lanes: Lanes) {
            let update = direction(load(gradient, lanes), factor, load(columnFactors, lanes), options)
            store(multiplyAdd(step, update, load(parameter, lanes) * options.decoupled_decay), parameter, lanes)
        }
        forEachLanes(to: Int(cols), update)
    }
}
