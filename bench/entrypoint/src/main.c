/* The main program of the bench: as small as one can be, so that only what starts and stops it is measured.
 * Says the time of its first instruction on stdout, as a number of nanoseconds; then ends (no argument), or sleeps until SIGTERM. */
#include <linux/signal.h>
#include <linux/time.h>
#include <sys/syscall.h>

static long call(long number, long a, long b, long c, long d) {
  long result;
  register long r10 __asm__("r10") = d;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
  return result;
}

__attribute__((used)) void run(long *stack) {
  struct timespec now;
  call(SYS_clock_gettime, CLOCK_MONOTONIC, (long)&now, 0, 0);
  char text[24];
  int at = sizeof text;
  text[--at] = '\n';
  for (unsigned long number = now.tv_sec * 1000000000ul + now.tv_nsec; number; number /= 10) text[--at] = '0' + number % 10;
  unsigned long term = 1ul << (SIGTERM - 1);
  if (stack[0] > 1) call(SYS_rt_sigprocmask, SIG_BLOCK, (long)&term, 0, 8);
  call(SYS_write, 1, (long)(text + at), sizeof text - at, 0);
  if (stack[0] > 1) call(SYS_rt_sigtimedwait, (long)&term, 0, 0, 8);
  call(SYS_exit_group, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call run\n");
