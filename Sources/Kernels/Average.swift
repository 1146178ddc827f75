/// A moving average: `average` goes the share `share` of the way to `x`, where `keep` is the rest of it.
///
/// From the nearer end, as in torch.lerp: so an `x` that does not move is its own average, and a share of 1 is `x`.
func moveAverage(
    _ average: UnsafeMutablePointer<Float>, _ x: UnsafePointer<Float>, _ share: Float, _ keep: Float, _ n: Int64
) {
    if share < 0.5 {
        let share = Vector(repeating: share)
        @inline(always)
        func move(_ lanes: Lanes) {
            let old = load(average, lanes)
            store(multiplyAdd(share, load(x, lanes) - old, old), average, lanes)
        }
        forEachLanes(to: Int(n), move)
    } else {
        let back = Vector(repeating: -keep)
        @inline(always)
        func move(_ lanes: Lanes) {
            let new = load(x, lanes)
            store(multiplyAdd(back, new - load(average, lanes), new), average, lanes)
        }
        forEachLanes(to: Int(n), move)
    }
}

/// Exchanges the elements of two arrays.
func exchange(_ a: UnsafeMutablePointer<Float>, _ b: UnsafeMutablePointer<Float>, _ n: Int64) {
    @inline(always)
    func exchange(_ lanes: Lanes) {
        let (x, y) = (load(a, lanes), load(b, lanes))
        store(y, a, lanes)
        store(x, b, lanes)
    }
    forEachLanes(to: Int(n), exchange)
}
