import CShims

/// How the mean gradient of a window is kept in bounds: once per window, after the division by its weight.
///
/// It works on the parameters that it is given and knows no others, so that some can be clipped apart from the rest.
enum Clipping: Equatable {
    case none
    /// Scales all, so that their global 2-norm is at most the limit, as torch.nn.utils.clip_grad_norm_.
    case norm(limit: Double)
    /// Moves each element into -limit ... limit, as torch.nn.utils.clip_grad_value_.
    case value(limit: Double)
    /// Scales each unit whose norm is above `clipping` times that of the unit of the parameter, or times `eps` where that
    /// is larger, down to it (adaptive gradient clipping, Brock et al., arXiv 2102.06171). A unit is what one index of the
    /// leading axis has, such as the weights of one output of a linear layer; with less than two axes it is the whole.
    case adaptive(clipping: Double, eps: Double)

    /// Errors: `invalidArgument` for a limit outside of its range, or two kinds of clipping.
    init(_ options: Accumulator.Options) throws(GAError) {
        try Clipping.requireLimit(options.maxGradNorm, "max_grad_norm")
        try Clipping.requireLimit(options.maxGradValue, "max_grad_value")
        try Clipping.requireLimit(options.agcClipping, "agc_clipping")
        if let limit = options.maxGradValue, Float(limit) == 0 {
            throw GAError(.invalidArgument, "accumulator: max_grad_value is \(limit), which is 0 in float32")
        }
        guard options.agcEps.isFinite && options.agcEps > 0 else {
            throw GAError(
                .invalidArgument, "accumulator: agc_eps is \(options.agcEps): it must be finite and above 0")
        }
        let kinds: [Clipping?] = [
            options.maxGradNorm.map { .norm(limit: $0) }, options.maxGradValue.map { .value(limit: $0) },
            options.agcClipping.map { .adaptive(clipping: $0, eps: options.agcEps) },
        ]
        let given = kinds.compactMap { $0 }
        guard given.count < 2 else {
            throw GAError(
                .invalidArgument,
                "accumulator: of max_grad_norm, max_grad_value and agc_clipping, \(given.count) are set: choose one, and "
                    + "leave the others 0")
        }
        self = given.first ?? .none
    }

    private static func requireLimit(_ limit: Double?, _ option: StaticString) throws(GAError) {
        guard let limit, !limit.isFinite || limit <= 0 else { return }
        throw GAError(
            .invalidArgument, "accumulator: \(option) is \(limit): it must be finite and above 0, or 0 for none")
    }

    /// What clipping came to.
    struct Result {
        /// What the sums are multiplied with on their way into the update.
        let scale: Float
        /// What sums that were not there to be changed are multiplied with before: a power of two.
        var rest: Float = 1
        /// The norm after clipping over the norm before: 1 if nothing was clipped.
        let factor: Double
    }

    /// Clips the mean of `sums`, which may be changed in place; nil if it is beyond float32, and nothing was changed.
    ///
    /// - Parameters:
    ///   - sums: a sum per parameter, or nil for nothing.
    ///   - norm: the global 2-norm of their mean.
    func clip(
        _ sums: [Tensor?], of parameters: [Tensor], norm: Double, weight: Double
    ) throws(GAError) -> Result? {
        var factor = 1.0
        // The small constant is PyTorch's, in clip_grad_norm_.
        if case .norm(let limit) = self, norm.isFinite { factor = min(1, limit / (norm + 1e-6)) }
        guard Float(norm * factor).isFinite else { return nil }
        switch self {
        case .none, .norm:
            let (scale, rest) = try inRange(factor / weight, sums)
            return Result(scale: scale, rest: rest, factor: factor)
        case .value(let limit):
            return Result(scale: 1, factor: try clipValues(sums, scale: Float(1 / weight), to: Float(limit)))
        case .adaptive(let clipping, let eps):
            let ratio = try UnitClipping(clipping: clipping, eps: eps, weight: weight).clip(sums, of: parameters)
            return Result(scale: Float(1 / weight), factor: ratio)
        }
    }

    /// The scale as float32 can hold it: of sums so large that it cannot, a part is applied to them in place, or returned for
    /// others.
    private func inRange(_ scale: Double, _ sums: [Tensor?]) throws(GAError) -> (Float, rest: Float) {
        let missing = Int(Float.leastNormalMagnitude.exponent) - Int(scale.exponent)
        guard missing > 0 && scale > 0 else { return (Float(scale), 1) }
        let part = Float(sign: .plus, exponent: -min(missing, 100), significand: 1)
        try Pieces(sums.map { $0?.elementCount ?? 0 }).forEach { index, start, count in
            let sum = sums[index]!.floats + start
            Runtime.kernels.add_scaled(sum, sum, SHIMS_F32, part, Int64(count), 0)
        }
        return (Float(scale / Double(part)), part)
    }

    private func clipValues(_ sums: [Tensor?], scale: Float, to limit: Float) throws(GAError) -> Double {
        let pieces = Pieces(sums.map { $0?.elementCount ?? 0 })
        return try ratioOfNorms(pieces.count) { piece, squares in
            let (index, start, count) = pieces[piece]
            Runtime.kernels.clip_values(sums[index]!.floats + start, scale, limit, squares, Int64(count))
        }
    }
}

/// The norm after over the norm before, from the sums of squares before and after that `body` writes for each tile; 1 if
/// they are equal.
private func ratioOfNorms(
    _ tiles: Int, _ body: (Int, UnsafeMutablePointer<Double>) -> Void
) throws(GAError) -> Double {
    var squares = [Double](repeating: 0, count: 2 * tiles)
    try squares.withUnsafeMutableBufferPointer { (squares) throws(GAError) in
        guard let base = squares.baseAddress else { return }
        try Runtime.parallel(tiles: tiles) { tile in body(tile, base + 2 * tile) }
    }
    var (before, after) = (0.0, 0.0)
    for tile in 0..<tiles {
        before += squares[2 * tile]
        after += squares[2 * tile + 1]
    }
    return before == after ? 1 : (after / before).squareRoot()
}

/// Adaptive clipping, unit by unit.
private struct UnitClipping {
    let clipping: Double
    let eps: Double
    let weight: Double

    /// Units of a parameter for one tile.
    private struct Units {
        let index: Int
        let start: Int
        let count: Int
        let length: Int
    }

    /// A part of a unit that is too long for one tile.
    private struct Part {
        let index: Int
        let start: Int
        let length: Int
        /// Counts the units that are cut.
        let unit: Int
    }

    func clip(_ sums: [Tensor?], of parameters: [Tensor]) throws(GAError) -> Double {
        let (whole, parts) = cut(sums)
        let partSquares = try collect(parts.count) { number in
            let part = parts[number]
            return squares(
                parameters[part.index].floats + part.start, sums[part.index]!.floats + part.start, part.length)
        }
        var unitSquares = [SIMD2<Double>](repeating: .zero, count: parts.last.map { $0.unit + 1 } ?? 0)
        for (part, squares) in zip(parts, partSquares) { unitSquares[part.unit] += squares }
        return try ratioOfNorms(whole.count + parts.count) { [partSquares, unitSquares] tile, out in
            if tile < whole.count {
                let units = whole[tile]
                let parameter = parameters[units.index].floats + units.start
                let gradient = sums[units.index]!.floats + units.start
                for start in stride(from: 0, to: units.count * units.length, by: units.length) {
                    let squares = squares(parameter + start, gradient + start, units.length)
                    scale(gradient + start, units.length, by: factor(squares), squares.y, out)
                }
            } else {
                let part = parts[tile - whole.count]
                scale(
                    sums[part.index]!.floats + part.start, part.length, by: factor(unitSquares[part.unit]),
                    partSquares[tile - whole.count].y, out)
            }
        }
    }

    private func cut(_ sums: [Tensor?]) -> ([Units], [Part]) {
        var whole: [Units] = []
        var parts: [Part] = []
        for (index, sum) in sums.enumerated() {
            guard let sum, sum.elementCount > 0 else { continue }
            let count = sum.shape.count < 2 ? 1 : sum.shape[0]
            let length = sum.elementCount / count
            guard length > Pieces.grain else {
                let most = Pieces.grain / length
                for unit in stride(from: 0, to: count, by: most) {
                    whole.append(
                        Units(index: index, start: unit * length, count: min(most, count - unit), length: length))
                }
                continue
            }
            for unit in 0..<count {
                let number = parts.last.map { $0.unit + 1 } ?? 0
                for start in stride(from: 0, to: length, by: Pieces.grain) {
                    parts.append(
                        Part(
                            index: index, start: unit * length + start, length: min(Pieces.grain, length - start),
                            unit: number))
                }
            }
        }
        return (whole, parts)
    }

    /// Of the parameter and of the sum of its gradients.
    private func squares(
        _ parameter: UnsafePointer<Float>, _ gradient: UnsafePointer<Float>, _ count: Int
    ) -> SIMD2<Double> {
        SIMD2(
            Runtime.kernels.sum_of_squares(parameter, Int64(count)),
            Runtime.kernels.sum_of_squares(gradient, Int64(count)))
    }

    /// What a unit is multiplied with, at most 1.
    private func factor(_ squares: SIMD2<Double>) -> Double {
        let limit = clipping * max(squares.x.squareRoot(), eps)
        let norm = squares.y.squareRoot() / weight
        return norm > limit ? limit / norm : 1
    }

    private func scale(
        _ gradient: UnsafeMutablePointer<Float>, _ count: Int, by factor: Double, _ squares: Double,
        _ out: UnsafeMutablePointer<Double>
    ) {
        out[0] += squares
        out[1] += squares * factor * factor
        if factor < 1 {
            Runtime.kernels.add_scaled(gradient, gradient, SHIMS_F32, Float(factor), Int64(count), 0)
        }
    }
}
