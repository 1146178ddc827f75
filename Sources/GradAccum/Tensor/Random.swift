import CShims
import Glibc

/// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011), so that number i depends on (seed, i) alone.
struct Philox {
    private let key: (UInt32, UInt32)

    init(seed: UInt64) { key = (UInt32(truncatingIfNeeded: seed), UInt32(truncatingIfNeeded: seed >> 32)) }

    /// The four numbers of a counter.
    func block(_ counter: UInt64) -> (UInt32, UInt32, UInt32, UInt32) {
        var c: (UInt32, UInt32, UInt32, UInt32) = (
            UInt32(truncatingIfNeeded: counter), UInt32(truncatingIfNeeded: counter >> 32), 0, 0
        )
        var k = key
        for _ in 0..<10 {
            let a = UInt64(0xD251_1F53) &* UInt64(c.0)
            let b = UInt64(0xCD9E_8D57) &* UInt64(c.2)
            c = (
                UInt32(truncatingIfNeeded: b >> 32) ^ c.1 ^ k.0, UInt32(truncatingIfNeeded: b),
                UInt32(truncatingIfNeeded: a >> 32) ^ c.3 ^ k.1, UInt32(truncatingIfNeeded: a)
            )
            k = (k.0 &+ 0x9E37_79B9, k.1 &+ 0xBB67_AE85)
        }
        return c
    }

    /// Two numbers in (0, 1) of 52 random bits each.
    func uniforms(_ counter: UInt64) -> (Double, Double) {
        let (a, b, c, d) = block(counter)
        func unit(_ high: UInt32, _ low: UInt32) -> Double {
            let bits = (UInt64(high) << 32 | UInt64(low)) >> 12
            return (Double(bits) + 0.5) * 0x1p-52
        }
        return (unit(a, b), unit(c, d))
    }
}

extension Tensor {
    public func fill(_ value: Double) throws(GAError) {
        try requireWritable("fill: tensor")
        let one = try Tensor(uninitialized: [], dtype, for: "fill")
        switch dtype {
        case .float32: one.floats[0] = Float(value)
        case .bfloat16, .float16:
            var wide = Float(value)
            Runtime.kernels.from_f32(one.address.assumingMemoryBound(to: UInt16.self), dtype.format, &wide, 1)
        case .int32:
            guard let exact = Int32(exactly: value) else { throw notAnInteger(value) }
            one.address.storeBytes(of: exact, as: Int32.self)
        case .int64:
            guard let exact = Int64(exactly: value) else { throw notAnInteger(value) }
            one.address.storeBytes(of: exact, as: Int64.self)
        }
        storage.noteWrite()
        let still = [Int](repeating: 0, count: rank)
        try StridedCopy(shape, from: still, to: strides, elementBytes: dtype.byteCount).run(
            from: one.address, to: address)
    }

    private func notAnInteger(_ value: Double) -> GAError {
        GAError(.invalidArgument, "fill: value is \(value), which is no \(dtype)")
    }

    /// Normal random numbers by Box and Muller; element i depends on (seed, i) alone.
    public func fillNormal(mean: Double = 0, standardDeviation: Double = 1, seed: UInt64) throws(GAError) {
        guard mean.isFinite && standardDeviation.isFinite && standardDeviation >= 0 else {
            throw GAError(
                .invalidArgument,
                "fill_normal: mean \(mean) and standard_deviation \(standardDeviation) must be finite, and the latter "
                    + "at least 0")
        }
        try fillPairs("fill_normal", seed: seed) { u, v in
            let radius = standardDeviation * (-2 * log(u)).squareRoot()
            return (Float(mean + radius * cos(2 * .pi * v)), Float(mean + radius * sin(2 * .pi * v)))
        }
    }

    /// Uniform random numbers between `low` and `high`; element i depends on (seed, i) alone.
    public func fillUniform(low: Double = 0, high: Double = 1, seed: UInt64) throws(GAError) {
        guard low.isFinite && high.isFinite && low <= high else {
            throw GAError(.invalidArgument, "fill_uniform: low \(low) and high \(high) must be finite and in order")
        }
        try fillPairs("fill_uniform", seed: seed) { u, v in
            (Float(low + (high - low) * u), Float(low + (high - low) * v))
        }
    }

    private func fillPairs(
        _ operation: StaticString, seed: UInt64, _ pair: (Double, Double) -> (Float, Float)
    ) throws(GAError) {
        try require(.float32, operation, "tensor")
        try requireWritable("\(operation): tensor")
        let packed = isContiguous ? self : try Tensor(uninitialized: layout)
        let generator = Philox(seed: seed)
        let count = elementCount
        let out = packed.floats
        try Runtime.parallel(count: (count + 1) / 2, grain: 2048) { start, size in
            for index in start..<(start + size) {
                let (u, v) = generator.uniforms(UInt64(index))
                let (first, second) = pair(u, v)
                out[2 * index] = first
                if 2 * index + 1 < count { out[2 * index + 1] = second }
            }
        }
        storage.noteWrite()
        guard packed !== self else { return }
        try StridedCopy(shape, from: packed.strides, to: strides, elementBytes: 4).run(
            from: packed.address, to: address)
    }
}
