# Writes the blocks of a file to another one by kernel AIO, past the page cache, one at a time, round and round; prints
# `ack SEQUENCE INDEX BEGIN_US END_US` for each that it was told is durable, like the demo's own writers.
#
# Called by the scenario `engines`. Perl, because it is in every guest and needs no unsafe code for a system call.
use strict;
use warnings;
use Fcntl;

use constant { SETUP => 206, GETEVENTS => 208, SUBMIT => 209, GETTIMEOFDAY => 96 };    # x86-64
use constant { DIRECT => 0x4000, DSYNC => 0x1000, PWRITE => 1, BLOCK => 4096 };

my ($from, $to) = @ARGV;
$| = 1;
open(my $in, '<:raw', $from) or die "$from: $!";
sysopen(my $out, $to, O_WRONLY | O_CREAT | DIRECT | DSYNC, 0644) or die "$to: $!";
my $context = pack('Q', 0);
syscall(SETUP, 8, $context) == 0 or die "io_setup: $!";
my $id = unpack('Q', $context);
my $room = "\0" x (2 * BLOCK);

sub micros {
    my $time = "\0" x 16;
    syscall(GETTIMEOFDAY, $time, 0);
    my ($seconds, $micros) = unpack('qq', $time);
    return $seconds * 1_000_000 + $micros;
}

while (1) {
    my $block;
    if (!sysread($in, $block, BLOCK)) {
        sysseek($in, 0, 0);
        next;
    }
    my ($sequence, $index) = unpack('QQ', substr($block, 8, 16));
    next if !$sequence;
    # Written into first: a string that shares its bytes with another one moves then.
    substr($room, 0, 1) = "\1";
    my $address = unpack('Q', pack('p', $room));
    my $offset = -$address % BLOCK;
    substr($room, $offset, BLOCK) = $block;
    my $request =
        pack('QLLSsLQQqQLL', 0, 0, 0, PWRITE, 0, fileno($out), $address + $offset, BLOCK, $index * BLOCK, 0, 0, 0);
    my $list = pack('P', $request);
    my $begin = micros();
    syscall(SUBMIT, $id, 1, $list) == 1 or die "io_submit: $!";
    my $event = "\0" x 32;
    while (syscall(GETEVENTS, $id, 1, 1, $event, 0) != 1) {
        $!{EINTR} or die "io_getevents: $!";
    }
    my (undef, undef, $result) = unpack('QQq', $event);
    if ($result != BLOCK) {
        print "error $sequence $index ", micros(), " AIO says $result\n";
        exit 1;
    }
    print "ack $sequence $index $begin ", micros(), "\n";
}
