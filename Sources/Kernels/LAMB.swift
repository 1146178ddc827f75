import CShims

/// The direction of LAMB: `m / correction1 / (sqrt(v / correction2) + eps) + weight_decay * p`.
@inline(always)
private func direction(_ p: Vector, _ m: Vector, _ v: Vector, _ options: shims_lamb) -> Vector {
    let correction = Vector(repeating: options.inverse_sqrt_correction2)
    let adapted = m * options.inverse_correction1 / multiplyAdd(v.squareRoot(), correction, options.eps)
    return multiplyAdd(Vector(repeating: options.weight_decay), p, adapted)
}

/// Updates the moments with `g = scale * gradient` as in Adam; returns the sums of squares of the parameter and of the
/// direction that the moments make.
func lambMoments(
    _ parameter: UnsafePointer<Float>, _ gradient: UnsafePointer<Float>, _ m: UnsafeMutablePointer<Float>,
    _ v: UnsafeMutablePointer<Float>, _ options: UnsafePointer<shims_lamb>, _ n: Int64,
    _ squares: UnsafeMutablePointer<shims_squares>
) {
    let options = options.pointee
    let scale = Vector(repeating: options.gradient_scale)
    let weight1 = Vector(repeating: options.weight1)
    let weight2 = Vector(repeating: options.weight2)
    var parameterSum: DoubleVector = (.zero, .zero)
    var directionSum: DoubleVector = (.zero, .zero)
    @inline(always)
    func update(_ lanes: Lanes) {
        let p = load(parameter, lanes)
        let g = load(gradient, lanes) * scale
        let mean = load(m, lanes)
        let newMean = multiplyAdd(weight1, g - mean, mean)
        let newSquare = multiplyAdd(weight2 * g, g, load(v, lanes) * options.beta2)
        store(newMean, m, lanes)
        store(newSquare, v, lanes)
        addSquares(p, to: &parameterSum)
        // Past the end there may be 0 / 0.
        addSquares(padded(direction(p, newMean, newSquare, options), lanes), to: &directionSum)
    }
    forEachLanes(to: Int(n), update)
    squares.pointee = shims_squares(parameter: sumOfLanes(parameterSum), direction: sumOfLanes(directionSum))
}

/// p loses `step` times the direction.
func lambStep(
    _ parameter: UnsafeMutablePointer<Float>, _ m: UnsafePointer<Float>, _ v: UnsafePointer<Float>,
    _ options: UnsafePointer<shims_lamb>, _ step: Float, _ n: Int64
) {
    let options = options.pointee
    let size = Vector(repeating: -step)
    @inline(always)
    func update(_ lanes: Lanes) {
        let p = load(parameter, lanes)
        store(multiplyAdd(size, direction(p, load(m, lanes), load(v, lanes), options), p), parameter, lanes)
    }
    forEachLanes(to: Int(n), update)
}
