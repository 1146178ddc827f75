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

/// Codes as numbers, less `base`.
@inline(always)
private func numbers(_ codes: Codes, less base: Float) -> Vector {
    var bits = Bits.zero
    for lane in 0..<16 { bits[lane] = UInt32(codes[lane]) }
    return unsafeBitCast(bits | magic.bitPattern, to: Vector.self) - (magic + base)
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
    /// Of the magnitude over the level, by the last bits of the level's exponent.
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
        var (levels, scale) = (first, 1e-6)
        for decade in 0..<8 {
            // What counts from 127 in a float is seen by its last three bits.
            let exponent = (decade &+ Int(first) &- 2) & 7
            if decade < 7 {
                set(&slopes, exponent, 0.9 * scale / levels)
                set(&offsets, exponent, scale * (0.45 / levels - 0.8))
                // Half-way between the first level and the one below it, which is 0 or a fifth of a part away from 0.1.
                let lowest = 0.05 * scale * (1 + 4.5 / levels)
                set(&starts, decade, decade == 0 ? lowest : scale * (0.1 + 0.18 / levels))
                set(&levelSlopes, decade, levels / (0.9 * scale))
                set(&levelOffsets, decade, levels - levels / 9 - first + 0.5)
                set(&mostLevels, decade, 2 * levels - first)
            } else {
                // Of the levels of 0 and of 1, which no other line is for.
                let count = levels - first + 1
                set(&slopes, exponent, 1 / count)
                set(&offsets, exponent, (1 - first) / count)
                set(&starts, decade, 1 - 0.45 / levels)
                set(&levelSlopes, decade, count)
                set(&levelOffsets, decade, 0)
                set(&mostLevels, decade, count)
            }
            levels *= 2
            scale *= 10
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

    /// The magnitude of a level above 0.
    @inline(always)
    func magnitude(_ level: Vector) -> Vector {
        let exponent = unsafeBitCast(level, to: Bits.self) &>> 23
        return multiplyAdd(level, shims_lookup(slopes, exponent), shims_lookup(offsets, exponent))
    }

    /// The levels from 0 to the one next to a magnitude: how many, less up to 1/2.
    @inline(always)
    func levels(_ magnitude: Vector) -> Vector {
        let bits = unsafeBitCast(magnitude, to: Bits.self)
        var logarithm = Vector.zero
        for lane in 0..<16 { logarithm[lane] = Float(Int32(bitPattern: bits[lane])) }
        // The bits are a logarithm, to 0.03 of a decade. The start of a decade lies at 0 ... 0.45 of one, so that rounding
        // the logarithm to k - 0.23 ... k + 0.8 leaves only start k to compare with. 31.5 is 38.23, for the exponent's 127,
        // less the 6 decades to the lowest one and 0.73.
        let rounded = multiplyAdd(logarithm, Vector(repeating: 0.30103 * 0x1p-23), magic - 31.5)
        let near = unsafeBitCast(larger(rounded, Vector(repeating: magic)), to: Bits.self)
        let isBelow = magnitude .< shims_lookup(starts, near)
        let decade = choose(near, near &- 1, where: isBelow)
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
    let options = options.pointee
    let signed = DynamicMap(first: 1)
    let unsigned = DynamicMap(first: 2)
    let scale = Vector(repeating: options.gradient_scale)
    let weight1 = Vector(repeating: options.weight1)
    let beta2 = Vector(repeating: options.beta2)
    let weight2 = Vector(repeating: options.weight2)
    let correction = Vector(repeating: options.inverse_sqrt_correction2)
    let size = Vector(repeating: -options.step_size)
    var moments = (zeroRegisters(), zeroRegisters())
    withUnsafeMutableBytes(of: &moments) {
        // Of a block, in full precision.
        let means = $0.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: Float.self)
        let squares = means + 256
        for number in 0..<(Int(n) &+ 255) / 256 {
            let first = number &* 256
            let end = first &+ 256 < Int(n) ? first &+ 256 : Int(n)
            let mMap = signed.scaled(mLargest[number])
            let vMap = unsigned.scaled(vLargest[number])
            var (mMost, vMost) = (Vector.zero, Vector.zero)
            @inline(always)
            func update(_ lanes: Lanes) {
                let p = load(parameter, lanes)
                let g = load(gradient, lanes) * scale
                let level = numbers(load(m, lanes), less: 127)
                // A level of 0 takes the line of some decade, which is below 0 there.
                let mean = copySign(larger(mMap.magnitude(magnitude(level)), Vector.zero), level)
                let newMean = multiplyAdd(weight1, g - mean, mean)
                let square = vMap.magnitude(numbers(load(v, lanes), less: -1))
                let newSquare = multiplyAdd(weight2 * g, g, square * beta2)
                let denominator = multiplyAdd(newSquare.squareRoot(), correction, options.eps)
                store(multiplyAdd(size, newMean / denominator, p * options.decoupled_decay), parameter, lanes)
                let place = Lanes(first: lanes.first &- first)
                store(newMean, means, place)
                store(newSquare, squares, place)
                mMost = larger(mMost, padded(magnitude(newMean), lanes))
                vMost = larger(vMost, padded(newSquare, lanes))
            }
            forEachLanes(from: first, to: end, update)
            mLargest[number] = largest(mMost)
            vLargest[number] = largest(vMost)
            if mLargest[number] == .infinity || vLargest[number] == .infinity {
                // The block must not lose all of its numbers to that one.
                let most = Vector(repeating: .greatestFiniteMagnitude)
                @inline(always)
                func limit(_ lanes: Lanes) {
                    store(smaller(larger(load(means, lanes), -most), most), means, lanes)
                    store(smaller(load(squares, lanes), most), squares, lanes)
                }
                forEachLanes(to: 256, limit)
                if mLargest[number] == .infinity { mLargest[number] = .greatestFiniteMagnitude }
                if vLargest[number] == .infinity { vLargest[number] = .greatestFiniteMagnitude }
            }
            let mInverse = inverse(mLargest[number])
            let vInverse = inverse(vLargest[number])
            @inline(always)
            func round(_ lanes: Lanes) {
                let place = Lanes(first: lanes.first &- first)
                let mean = load(means, place) * mInverse
                // There is a code for 1 and none for -1.
                let levels = larger(copySign(signed.levels(magnitude(mean)), mean), Vector(repeating: -127))
                store(codes(unsafeBitCast(levels + (magic + 127), to: Bits.self)), m, lanes)
                let square = unsigned.levels(load(squares, place) * vInverse)
                store(codes(unsafeBitCast(square + magic, to: Bits.self)), v, lanes)
            }
            forEachLanes(from: first, to: end, round)
        }
    }
}

/// 1 over a magnitude, or 0 for 0.
@inline(always)
private func inverse(_ magnitude: Float) -> Float { magnitude > 0 ? 1 / magnitude : 0 }

/// The magnitude with the sign of another number.
@inline(always)
private func copySign(_ magnitude: Vector, _ sign: Vector) -> Vector {
    unsafeBitCast(
        unsafeBitCast(magnitude, to: Bits.self) | unsafeBitCast(sign, to: Bits.self) & 0x8000_0000, to: Vector.self)
}
