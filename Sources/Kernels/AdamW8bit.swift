import CShims

/// Sixteen codes.
private typealias Codes = SIMD16<UInt8>

/// The given lanes of an array of codes; lanes past its end hold 0.
@inline(always)
private func load(_ source: UnsafePointer<UInt8>, _ lanes: Lanes) -> Codes {
    let start = UnsafeRawPointer(source + lanes.first)
    if lanes.isWhole { return start.loadUnaligned(as: Codes.self) }
    var codes = Codes.zero
    withUnsafeMutableBytes(of: &codes) {
        $0.baseAddress.unsafelyUnwrapped.copyMemory(from: start, byteCount: lanes.count)
    }
    return codes
}

/// Stores codes over the given lanes of an array and nothing past them.
@inline(always)
private func store(_ codes: Codes, _ target: UnsafeMutablePointer<UInt8>, _ lanes: Lanes) {
    let start = UnsafeMutableRawPointer(target + lanes.first)
    if lanes.isWhole {
        start.storeBytes(of: codes, as: Codes.self)
    } else {
        withUnsafeBytes(of: codes) {
            start.copyMemory(from: $0.baseAddress.unsafelyUnwrapped, byteCount: lanes.count)
        }
    }
}

/// A number whose last bits are an integer below 2^23 added to it.
private let magic: Float = 0x1p23

/// Codes, less `base`, times `unit`, a power of two.
@inline(always)
private func numbers(_ codes: Codes, less base: Float, times unit: Float) -> Vector {
    var bits = Bits.zero
    for lane in 0..<16 { bits[lane] = UInt32(codes[lane]) }
    return unsafeBitCast(bits | (magic * unit).bitPattern, to: Vector.self) - (magic + base) * unit
}

/// The last bytes of some numbers.
@inline(always)
private func codes(_ bits: Bits) -> Codes {
    var codes = Codes.zero
    for lane in 0..<16 { codes[lane] = UInt8(truncatingIfNeeded: bits[lane]) }
    return codes
}

/// The dynamic map of 8-bit optimizers (Dettmers et al., arXiv 2110.02861) between a level and a magnitude in 0 ... 1.
///
/// Levels n, n + 1, ... 2n - 1 are the middles of n equal parts of 0.1 ... 1 times a power of ten, for 7 decades up to 1 with
/// twice as many each. A level of 0 lies below them, at 0, and one above them, at 1. So within a decade the magnitude is a
/// line over the level and the other way round, and a line is looked up by its decade. Tables have 8 entries.
private struct DynamicMap {
    /// What levels are multiplied by to look them up. With signs, the last bits of the exponent are then 0 for the level of 1
    /// and for that of 0 alike, through which the same line goes.
    private let unit: Double
    /// Of the magnitude over the level in this unit, by the last bits of its exponent.
    private var slopes = Vector.zero
    private var offsets = Vector.zero
    /// The magnitude from which on the level is that of a decade, or of 1.
    private var starts = Vector.zero
    /// Of the number of levels above 0, with 1/2 taken off, over the magnitude, and the most that they give in a decade.
    private var levelSlopes = Vector.zero
    private var levelOffsets = Vector.zero
    private var mostLevels = Vector.zero

    /// `first`: the levels of the lowest decade, 1 or 2.
    @inline(always)
    init(first: Double) {
        unit = first == 1 ? 1.0 / 64 : 1
        var (levels, scale) = (first, 1e-6)
        // 1 over them: this runs once per piece of a parameter, where divisions would be felt.
        var (part, inverseScale) = (1 / first, 1e6)
        for decade in 0..<8 {
            let exponent = Int(Float(levels * unit).bitPattern &>> 23) & 7
            if decade < 7 {
                set(&slopes, exponent, 0.9 * scale * part / unit)
                set(&offsets, exponent, scale * (0.45 * part - 0.8))
                // Half-way between the first level and the one below it, which is 0 or a fifth of a part away from 0.1.
                let lowest = 0.05 * scale * (1 + 4.5 * part)
                set(&starts, decade, decade == 0 ? lowest : scale * (0.1 + 0.18 * part))
                set(&levelSlopes, decade, levels * (inverseScale / 0.9))
                set(&levelOffsets, decade, levels * (8.0 / 9) - first + 0.5)
                set(&mostLevels, decade, 2 * levels - first)
            } else {
                // Of the levels of 0 and of 1, which no other line is for.
                let count = levels - first + 1
                set(&slopes, exponent, 1 / count / unit)
                set(&offsets, exponent, (1 - first) / count)
                set(&starts, decade, 1 - 0.45 * part)
                set(&levelSlopes, decade, count)
                set(&levelOffsets, decade, 0)
                set(&mostLevels, decade, count)
            }
            levels *= 2
            part /= 2
            scale *= 10
            inverseScale /= 10
        }
    }

    @inline(always)
    private func set(_ table: inout Vector, _ entry: Int, _ value: Double) {
        table[entry] = Float(value)
        table[entry &+ 8] = Float(value)
    }

    /// The map of a block whose largest magnitude is `scale`, for reading.
    @inline(always)
    func scaled(_ scale: Float) -> DynamicMap {
        var map = self
        map.slopes *= scale
        map.offsets *= scale
        return map
    }

    /// The magnitudes of codes, which are levels above 0, less 1.
    @inline(always)
    func magnitudes(_ codes: Codes) -> Vector {
        let level = numbers(codes, less: -1, times: Float(unit))
        let exponent = unsafeBitCast(level, to: Bits.self) &>> 23
        return multiplyAdd(level, shims_lookup(slopes, exponent), shims_lookup(offsets, exponent))
    }

    /// The numbers of codes, which are 127 plus or minus a level.
    @inline(always)
    func signedNumbers(_ codes: Codes) -> Vector {
        let level = numbers(codes, less: 127, times: Float(unit))
        let bits = unsafeBitCast(level, to: Bits.self)
        let exponent = bits &>> 23
        let offset = unsafeBitCast(shims_lookup(offsets, exponent), to: Bits.self) ^ (bits & 0x8000_0000)
        return multiplyAdd(level, shims_lookup(slopes, exponent), unsafeBitCast(offset, to: Vector.self))
    }

    /// The decade in which the level next to the magnitude of a number lies.
    @inline(always)
    func decade(of number: Vector) -> Bits {
        // Below this, levels are those of the decade below the lowest.
        let magnitude = shims_larger_magnitude(number, Vector(repeating: 0x1p-23))
        let bits = unsafeBitCast(magnitude, to: Bits.self)
        var logarithm = Vector.zero
        for lane in 0..<16 { logarithm[lane] = Float(Int32(bitPattern: bits[lane])) }
        // The bits are a logarithm, to 0.03 of a decade. The start of a decade lies at 0 ... 0.45 of one, so that rounding
        // the logarithm to k - 0.23 ... k + 0.8 leaves only start k to compare with. 31.5 is 38.23, for the exponent's 127,
        // less the 6 decades to the lowest one and 0.73.
        let rounded = multiplyAdd(logarithm, Vector(repeating: 0.30103 * 0x1p-23), magic - 31.5)
        let near = unsafeBitCast(rounded, to: Bits.self)
        // Numbers from 0 on are in the order of their bits: the difference is below 0 where the magnitude is below the start.
        let difference = bits &- unsafeBitCast(shims_lookup(starts, near), to: Bits.self)
        return near &+ unsafeBitCast(unsafeBitCast(difference, to: SIMD16<Int32>.self) &>> 31, to: Bits.self)
    }

    /// The levels from 0 to the one next to a magnitude: how many, less up to 1/2.
    @inline(always)
    func levels(_ magnitude: Vector, in decade: Bits) -> Vector {
        let line = multiplyAdd(magnitude, shims_lookup(levelSlopes, decade), shims_lookup(levelOffsets, decade))
        return smaller(line, shims_lookup(mostLevels, decade))
    }
}

/// AdamW with moments of 8 bits (Dettmers et al., arXiv 2110.02861): `adam` on moments that are made from their codes and
/// the largest magnitude of their block, and are rounded to the nearest codes afterwards.
///
/// The codes of the first moment are 127 plus or minus a level, and those of the second a level less 1.
func adamw8bit(
    _ parameter: UnsafeMutablePointer<Float>, _ gradient: UnsafePointer<Float>, _ m: UnsafeMutablePointer<UInt8>,
    _ mLargest: UnsafeMutablePointer<Float>, _ v: UnsafeMutablePointer<UInt8>, _ vLargest: UnsafeMutablePointer<Float>,
    _ options: UnsafePointer<shims_adam>, _ n: Int64
) {
    @inline(always)
    func fetch(_ element: Int) {
        shims_prefetch(parameter + element)
        shims_prefetch(gradient + element)
        shims_prefetch(m + element)
        shims_prefetch(v + element)
    }
    let groupSize = 4
    // Of memory in elements: one group may be worked on before what comes after it has arrived.
    let distance = 2 &* groupSize &* 256
    for vector in 0..<distance / 16 { fetch(16 &* vector) }
    let options = options.pointee
    let signed = DynamicMap(first: 1)
    let unsigned = DynamicMap(first: 2)
    let scale = Vector(repeating: options.gradient_scale)
    let weight1 = Vector(repeating: options.weight1)
    let beta1 = 1 - options.weight1
    let weight2 = Vector(repeating: options.weight2)
    let correction = Vector(repeating: options.inverse_sqrt_correction2)
    let size = Vector(repeating: -options.step_size)
    // Of a group of blocks, in full precision. What the largest numbers of a block take is hidden by the next block.
    let blockCount = (Int(n) &+ 255) / 256
    let zeros = zeroRegisters()
    // Four means, four squares, and room for a vector that is read past them.
    var moments = (zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros, Vector.zero)
    withUnsafeMutableBytes(of: &moments) {
        let means = $0.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: Float.self)
        let squares = means + (groupSize &* 256)
        for group in 0..<(blockCount &+ groupSize &- 1) / groupSize {
            let blocks = group &* groupSize..<min(group &* groupSize &+ groupSize, blockCount)
            let origin = blocks.lowerBound &* 256
            for block in blocks {
                let first = block &* 256
                let end = min(first &+ 256, Int(n))
                let mMap = signed.scaled(mLargest[block] * beta1)
                let vMap = unsigned.scaled(vLargest[block] * options.beta2)
                var (mMost, vMost) = (Vector.zero, Vector.zero)
                @inline(always)
                func accumulate(_ lanes: Lanes) {
                    let g = load(gradient, lanes) * scale
                    let mean = multiplyAdd(weight1, g, mMap.signedNumbers(load(m, lanes)))
                    let square = multiplyAdd(weight2 * g, g, vMap.magnitudes(load(v, lanes)))
                    let place = Lanes(first: lanes.first &- origin)
                    store(mean, means, place)
                    store(square, squares, place)
                    mMost = shims_larger_magnitude(mMost, padded(mean, lanes))
                    vMost = larger(vMost, padded(square, lanes))
                }
                forEachLanes(from: first, to: end, accumulate)
                mLargest[block] = largest(mMost)
                vLargest[block] = largest(vMost)
            }
            for block in blocks {
                let first = block &* 256
                let end = min(first &+ 256, Int(n))
                @inline(always)
                func update(_ lanes: Lanes) {
                    let place = Lanes(first: lanes.first &- origin)
                    let denominator = multiplyAdd(load(squares, place).squareRoot(), correction, options.eps)
                    let p = load(parameter, lanes) * options.decoupled_decay
                    store(multiplyAdd(size, load(means, place) / denominator, p), parameter, lanes)
                }
                let isBeyond = mLargest[block] > largestScale || vLargest[block] > largestScale
                if isBeyond {
                    // The update is that of the numbers as they are, but the block must not lose all of them to these.
                    forEachLanes(from: first, to: end, update)
                    let most = Vector(repeating: largestScale)
                    @inline(always)
                    func limit(_ lanes: Lanes) {
                        store(smaller(larger(load(means, lanes), -most), most), means, lanes)
                        store(smaller(load(squares, lanes), most), squares, lanes)
                    }
                    forEachLanes(from: first &- origin, to: first &- origin &+ 256, limit)
                    mLargest[block] = min(mLargest[block], largestScale)
                    vLargest[block] = min(vLargest[block], largestScale)
                }
                let mInverse = inverse(mLargest[block])
                let vInverse = inverse(vLargest[block])
                // The decades of a vector are found while the codes of the one before it are made.
                @inline(always)
                func prepare(_ place: Int) -> (mean: Vector, square: Vector, decades: (Bits, Bits)) {
                    let place = Lanes(first: place)
                    let mean = load(means, place) * mInverse
                    let square = load(squares, place) * vInverse
                    return (mean, square, (signed.decade(of: mean), unsigned.decade(of: square)))
                }
                var next = prepare(first &- origin)
                @inline(always)
                func finish(_ lanes: Lanes) {
                    if !isBeyond { update(lanes) }
                    let (mean, square, decades) = next
                    next = prepare(lanes.first &- origin &+ 16)
                    let level = copySign(signed.levels(magnitude(mean), in: decades.0), mean)
                    // There is a code for 1 and none for -1.
                    let code = larger(level, Vector(repeating: -127)) + (magic + 127)
                    store(codes(unsafeBitCast(code, to: Bits.self)), m, lanes)
                    let squareCode = unsigned.levels(square, in: decades.1) + magic
                    store(codes(unsafeBitCast(squareCode, to: Bits.self)), v, lanes)
                    // This reads little from memory: meanwhile a later group is fetched.
                    fetch(lanes.first &+ distance)
                }
                forEachLanes(from: first, to: end, finish)
            }
        }
    }
}

/// The largest scale of a block: 1 over it is no denormal, which would count for 0.
private let largestScale: Float = 0x1p126

/// 1 over a magnitude, or 0 for 0.
@inline(always)
private func inverse(_ magnitude: Float) -> Float { magnitude > 0 ? 1 / magnitude : 0 }

/// The magnitude with the sign of another number.
@inline(always)
private func copySign(_ magnitude: Vector, _ sign: Vector) -> Vector {
    unsafeBitCast(
        unsafeBitCast(magnitude, to: Bits.self) | unsafeBitCast(sign, to: Bits.self) & 0x8000_0000, to: Vector.self)
}
