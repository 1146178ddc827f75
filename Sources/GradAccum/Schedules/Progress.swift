/// How far the training of an optimizer has come: the one clock, and what follows it.
struct Progress {
    private(set) var updates = 0
    /// Of the windows that were applied.
    private(set) var weight = 0.0
    private(set) var schedule: Schedule?
    var scaling: BatchScaling?
    private(set) var plateau = Plateau.State()

    func reading(of clock: UpdateClock) -> Double {
        switch clock {
        case .updates: Double(updates)
        case .weight: weight
        }
    }

    mutating func follow(_ schedule: Schedule?) throws(GAError) {
        try schedule?.validate()
        self.schedule = schedule
        plateau = Plateau.State()
    }

    /// What the schedule multiplies the learning rate of the next update by.
    func scheduledFactor() throws(GAError) -> Double {
        guard let schedule else { return 1 }
        return try schedule.value(at: reading(of: schedule.clock)) * plateau.factor
    }

    /// How many updates of the base weight a window of `weight` counts as in second moments.
    func momentSteps(weight: Double) -> Double {
        guard let scaling, scaling.keepsBeta2HalfLife else { return 1 }
        return weight / scaling.baseWeight
    }

    /// Counts an applied update: the only thing that moves the clock.
    mutating func advance(weight: Double, loss: Double) {
        // Before the clock moves, so that no window of the warm-up counts.
        see(loss, as: .windowLoss)
        updates += 1
        self.weight += weight
    }

    /// Goes on from where another has come to; what it follows stays.
    mutating func resume(updates: Int, weight: Double, plateau: Plateau.State) {
        self.updates = updates
        self.weight = weight
        self.plateau = plateau
    }

    /// Shows a value to a plateau that waits for such, once the schedule is warm.
    mutating func see(_ value: Double, as signal: Plateau.Signal) {
        guard let schedule, case .plateau(let rule) = schedule.curve, rule.signal == signal else { return }
        if schedule.isWarm(at: reading(of: schedule.clock)) { plateau.see(value, rule) }
    }
}
