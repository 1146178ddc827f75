/// The clipping of a window whose parameters may be in groups with a limit of their own.
struct GroupClipping {
    let clipping: Clipping
    let optimizer: Optimizer

    /// What clipping came to.
    struct Result {
        /// Per parameter, what its sum is multiplied with on its way into the update.
        let scales: [Float]
        /// Per parameter, what its sum is multiplied with before, where it was not there to be changed.
        let factors: [Float]
        /// The norm of all after clipping over the norm before: 1 if nothing was clipped.
        let factor: Double
    }

    /// As ``Clipping/clip(_:of:norm:weight:)``, with the groups that have a limit apart from each other and from the rest.
    ///
    /// `squares`: per parameter, that of the norm of its sum.
    func clip(_ sums: [Tensor?], squares: [Double], weight: Double) throws(GAError) -> Result? {
        let limited = optimizer.parameters.indices.map { index in
            optimizer.groups.group(ofParameter: index)?.maxGradNorm == nil ? nil : optimizer.groups.ofParameter[index]
        }
        var scales = sums.map { _ in Float(1) }
        var factors = scales
        var isClipped = false
        var (before, after) = (0.0, 0.0)
        for part in [nil] + optimizer.groups.all.indices.map({ Int?($0) }) where limited.contains(part) {
            let members = limited.indices.filter { limited[$0] == part }
            let norm = members.reduce(0) { $0 + squares[$1] }.squareRoot() / weight
            let own = part.flatMap { optimizer.groups.all[$0].maxGradNorm }.map { Clipping.norm(limit: $0) } ?? clipping
            let sums = limited.indices.map { limited[$0] == part ? sums[$0] : nil }
            guard let clipped = try own.clip(sums, of: optimizer.parameters, norm: norm, weight: weight) else {
                return nil
            }
            for index in members { (scales[index], factors[index]) = (clipped.scale, clipped.rest) }
            if clipped.factor != 1 { isClipped = true }
            before += norm * norm
            after += (norm * clipped.factor) * (norm * clipped.factor)
            // Without groups, the number that the clipping gives, to the last bit.
            if members.count == sums.count { return Result(scales: scales, factors: factors, factor: clipped.factor) }
        }
        return Result(scales: scales, factors: factors, factor: isClipped ? (after / before).squareRoot() : 1)
    }
}
