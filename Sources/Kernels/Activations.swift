import CShims

// Functions of one number with their derivatives, side by side.

/// `max(x, 0)`; NaN stays NaN.
@inline(always)
private func relu(_ x: Vector) -> Vector {
    choose(x, 0, where: x .<= 0)
}

/// `dy` where `x` is above 0, else 0; at 0 the derivative is 0.
@inline(always)
private func reluGradient(_ dy: Vector, _ x: Vector) -> Vector {
    choose(dy, 0, where: x .<= 0)
}

/// What the value and the derivative of the tanh form of GELU share: with `2u = 2 sqrt(2/pi) (x + 0.044715 x^3)`,
/// the logistic function of `2u`, its derivative, and the derivative of `2u`.
///
/// The exponential is taken of `-|2u|` alone, so nothing overflows. `x` must be finite or NaN.
@inline(always)
private func geluTanhParts(_ x: Vector) -> (logistic: Vector, slope: Vector, inner: Vector) {
    let linear: Float = 1.595_769_12  // 2 sqrt(2/pi)
    let cubic: Float = 0.071_354_816  // times 0.044715
    let square = x * x
    let doubled = x * multiplyAdd(square, Vector(repeating: cubic), linear)
    let decayed = exponential(-magnitude(doubled))
    let reciprocal = 1 / (1 + decayed)
    let small = decayed * reciprocal
    let logistic = choose(reciprocal, small, where: x .< 0)
    return (logistic, small * reciprocal, multiplyAdd(square, Vector(repeating: 3 * cubic), linear))
}

/// GELU in its tanh form, `x / 2 (1 + tanh u)`, computed as `x` times the logistic function of `2u`, so that the
/// negative tail does not cancel: the relative error is below 5e-7 down to -1 and 3e-5 in the far tail.
@inline(always)
private func geluTanh(_ x: Vector) -> Vector {
    let parts = geluTanhParts(clampedToGELURange(x))
    return larger(x, Vector(repeating: -geluRange)) * parts.logistic
}

/// The derivative of the tanh form of GELU: with `L` the logistic function, `L(2u) + x L'(2u) (2u)'`.
@inline(always)
private func geluTanhDerivative(_ x: Vector) -> Vector {
    let x = clampedToGELURange(x)
    let parts = geluTanhParts(x)
    return multiplyAdd(x * parts.slope, parts.inner, parts.logistic)
}

/// Beyond this, both forms of GELU are 0 or `x`, and so are their derivatives 0 or 1.
private let geluRange: Float = 15

/// `x` within that range; NaN stays NaN.
@inline(always)
private func clampedToGELURange(_ x: Vector) -> Vector {
    smaller(larger(x, Vector(repeating: -geluRange)), Vector(repeating: geluRange))
}

/// The normal distribution at `x`, finite or NaN: its density times `sqrt(2 pi)`, and its cumulative function.
///
/// The tail is `exp(-x^2 / 2)` times a smooth function, half of erfcx(|x| / sqrt 2), which is a polynomial in
/// `t = 1 / (1 + |x| / 4)`. The rounding error of `x^2` is put back: it would cost the far tail six bits.
@inline(always)
private func normalDistribution(_ x: Vector) -> (bell: Vector, cumulative: Vector) {
    let square = x * x
    let residual = squareResidual(x, square)
    let coarse = exponential(square * -0.5)
    let bell = multiplyAdd(coarse, residual * -0.5, coarse)
    let t = 1 / multiplyAdd(magnitude(x), Vector(repeating: 0.25), 1)
    let u = t - 0.5
    var p = multiplyAdd(Vector(repeating: 0.017_177_14), u, 0.011_178_183)
    p = multiplyAdd(p, u, -0.050_189_067)
    p = multiplyAdd(p, u, -0.056_163_374)
    p = multiplyAdd(p, u, 0.060_192_034)
    p = multiplyAdd(p, u, 0.241_613_95)
    p = multiplyAdd(p, u, 0.373_047_32)
    p = multiplyAdd(p, u, 0.387_136_9)
    p = multiplyAdd(p, u, 0.303_948_28)
    p = multiplyAdd(p, u, 0.188_821_29)
    let tail = bell * (t * p)
    return (bell, choose(1 - tail, tail, where: x .< 0))
}

/// `x * x - square`, the rounding error of a square.
@inline(always)
private func squareResidual(_ x: Vector, _ square: Vector) -> Vector {
    #if FMA
        (-square).addingProduct(x, x)
    #else
        // Dekker's product: twelve bits and the rest.
        let high = unsafeBitCast(unsafeBitCast(x, to: Bits.self) & 0xffff_f000, to: Vector.self)
        let low = x - high
        return ((high * high - square) + 2 * high * low) + low * low
    #endif
}

/// GELU, `x` times the cumulative function of the normal distribution; within 8 ULP, in the tail too.
@inline(always)
private func geluErf(_ x: Vector) -> Vector {
    larger(x, Vector(repeating: -geluRange)) * normalDistribution(clampedToGELURange(x)).cumulative
}

/// The derivative of GELU: the cumulative function plus `x` times the density of the normal distribution.
@inline(always)
private func geluErfDerivative(_ x: Vector) -> Vector {
    let x = clampedToGELURange(x)
    let normal = normalDistribution(x)
    return multiplyAdd(x * 0.398_942_28, normal.bell, normal.cumulative)
}

/// `out[i] = op(x[i])`.
func unary(
    _ op: shims_unary, _ out: UnsafeMutablePointer<Float>, _ x: UnsafePointer<Float>, _ n: Int64
) {
    @inline(always)
    func applyReLU(_ lanes: Lanes) { store(relu(load(x, lanes)), out, lanes) }
    @inline(always)
    func applyGELUTanh(_ lanes: Lanes) { store(geluTanh(load(x, lanes)), out, lanes) }
    @inline(always)
    func applyGELUErf(_ lanes: Lanes) { store(geluErf(load(x, lanes)), out, lanes) }
    switch op.rawValue {
    case SHIMS_RELU.rawValue: forEachLanes(to: Int(n), applyReLU)
    case SHIMS_GELU_TANH.rawValue: forEachLanes(to: Int(n), applyGELUTanh)
    default: forEachLanes(to: Int(n), applyGELUErf)
    }
}

/// `out[i] (+)= dy[i] * op'(x[i])`.
func unaryGradient(
    _ op: shims_unary, _ out: UnsafeMutablePointer<Float>, _ dy: UnsafePointer<Float>,
    _ x: UnsafePointer<Float>, _ n: Int64, _ accumulate: Int32
) {
    let accumulate = accumulate != 0
    @inline(always)
    func addReLU(_ lanes: Lanes) {
        emit(reluGradient(load(dy, lanes), load(x, lanes)), out, lanes, accumulate: accumulate)
    }
    @inline(always)
    func addGELUTanh(_ lanes: Lanes) {
        emitProduct(
            load(dy, lanes), geluTanhDerivative(load(x, lanes)), out, lanes, accumulate: accumulate)
    }
    @inline(always)
    func addGELUErf(_ lanes: Lanes) {
        emitProduct(
            load(dy, lanes), geluErfDerivative(load(x, lanes)), out, lanes, accumulate: accumulate)
    }
    switch op.rawValue {
    case SHIMS_RELU.rawValue: forEachLanes(to: Int(n), addReLU)
    case SHIMS_GELU_TANH.rawValue: forEachLanes(to: Int(n), addGELUTanh)
    default: forEachLanes(to: Int(n), addGELUErf)
    }
}
