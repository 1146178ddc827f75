/// `e` to the power `x`.
///
/// Range reduction after Cody and Waite, then a minimax polynomial of degree 6. Within 1.1 ULP of the true value
/// where that is a normal number; below it the result is 0 and above it infinite, whatever the floating-point
/// unit does with denormals. NaN stays NaN.
@inline(always)
func exponential(_ x: Vector) -> Vector {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    let shift = Vector(repeating: 12_582_912)
    let shifted = multiplyAdd(x, Vector(repeating: 1.442_695_04), shift)
    let exponent = shifted - shift
    // ln 2 in two parts; the first has few enough bits that its product with the exponent is exact.
    let partial = multiplyAdd(exponent, Vector(repeating: -0.693_359_375), x)
    let r = multiplyAdd(exponent, Vector(repeating: 2.121_944_4e-4), partial)
    var p = multiplyAdd(Vector(repeating: 0.001_381_446_7), r, 0.008_368_781)
    p = multiplyAdd(p, r, 0.041_668_393)
    p = multiplyAdd(p, r, 0.166_665_2)
    p = multiplyAdd(p, r, 0.499_999_94)
    p = multiplyAdd(p, r * r, r) + 1
    var power = unsafeBitCast(
        unsafeBitCast(p, to: Bits.self) &+ unsafeBitCast(shifted, to: Bits.self) &<< 23, to: Vector.self)
    power = choose(power, 0, where: x .< -87.336_54)
    power = choose(power, .infinity, where: x .> 88.722_83)
    return choose(power, x, where: x .!= x)
}

/// The natural logarithm of a positive number, in double precision so that a sum with it rounds once.
///
/// log m = 2 artanh((m - 1) / (m + 1)) with m between sqrt(1/2) and sqrt(2); the series is good for 1e-13.
@inline(always)
func logarithm(_ x: Float) -> Double {
    guard x > 0, x < .infinity else { return x == 0 ? -.infinity : Double(x) }
    let bits = Double(x).bitPattern
    let sqrtHalf = (0.5).squareRoot().bitPattern
    let exponent = Int64(bitPattern: bits &- sqrtHalf) &>> 52
    let m = Double(bitPattern: bits &- UInt64(bitPattern: exponent &<< 52))
    let f = (m - 1) / (m + 1)
    let s = f * f
    let low = 1 + s * (1.0 / 3 + s * (1.0 / 5 + s * (1.0 / 7)))
    let high = 1.0 / 9 + s * (1.0 / 11 + s * (1.0 / 13 + s * (1.0 / 15)))
    return Double(exponent) * 0.693_147_180_559_945_309 + 2 * f * (low + s * s * s * s * high)
}
