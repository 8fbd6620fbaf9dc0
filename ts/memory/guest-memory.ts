/** Host memory that a region can be backed by. What it is and where it lies is the business of whoever made it. */
export interface GuestMemory {
  /** Bytes. */
  readonly size: number;
}
