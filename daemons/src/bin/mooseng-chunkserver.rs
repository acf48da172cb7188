fn main() {
    mooseng_daemons::refuse_simulated_build();
}
